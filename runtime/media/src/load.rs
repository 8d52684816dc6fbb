//! Reading a picture from a file.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::{Error, Frame};

/// Longest side of an image that is decoded.
pub const MAX_IMAGE_SIDE: u32 = 32_768;
/// Most pixels of an image that is decoded (a phone's 50 megapixel photograph fits).
pub const MAX_IMAGE_PIXELS: u64 = 1 << 26;

/// Reads a PNG, JPEG, WebP, BMP or GIF file (of an animation its first picture), told apart by content and
/// not by name.
///
/// The camera's orientation (EXIF) is applied. Transparency is flattened onto black, so that fully
/// transparent pixels, black in most files, look as they do to TurboDiffusion, which drops the alpha
/// channel. Colour profiles are ignored, as there.
///
/// # Errors
/// [`Error::ReadImage`], [`Error::NotAnImage`] (which says what the file looks like),
/// [`Error::DecodeImage`] or [`Error::ImageTooLarge`].
pub fn load_image(path: &Path) -> Result<Frame, Error> {
    let read = |source| Error::ReadImage { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let kind = file.metadata().map_err(read)?;
    let strange = |found: &str| Error::NotAnImage { path: path.to_owned(), found: found.into() };
    if kind.is_dir() {
        return Err(strange("a folder"));
    }
    let mut head = Vec::with_capacity(512);
    file.by_ref().take(512).read_to_end(&mut head).map_err(read)?;
    let Some((format, name)) = format_of(&head) else { return Err(strange(&looks_like(&head))) };

    file.rewind().map_err(read)?;
    let mut reader = ImageReader::with_format(BufReader::new(file), format);
    let mut limits = Limits::no_limits();
    // Room for 16 bits of four channels; the sides are checked below, where the error can name them.
    limits.max_alloc = Some(MAX_IMAGE_PIXELS * 8 + (1 << 20));
    reader.limits(limits);
    let failed = |e: ImageError| decoding(path, name, e);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (max_side, max_pixels) = (MAX_IMAGE_SIDE, MAX_IMAGE_PIXELS);
    if width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
        return Err(Error::ImageTooLarge { path: path.to_owned(), width, height, max_side, max_pixels });
    }
    if width == 0 || height == 0 {
        let message = format!("it has no pixels ({width} x {height})");
        return Err(Error::DecodeImage { path: path.to_owned(), format: name, message });
    }
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    Ok(flatten(image))
}

/// Three channels out of any number, on black.
fn flatten(image: DynamicImage) -> Frame {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if !image.color().has_alpha() {
        return Frame { width, height, rgb: image.into_rgb8().into_raw() };
    }
    let shade = |colour: u8, alpha: u8| ((u32::from(colour) * u32::from(alpha) + 127) / 255) as u8;
    let rgba = image.into_rgba8().into_raw();
    let rgb = rgba.chunks_exact(4).flat_map(|px| [0, 1, 2].map(|c| shade(px[c], px[3]))).collect();
    Frame { width, height, rgb }
}

fn decoding(path: &Path, format: &'static str, error: ImageError) -> Error {
    let message = match &error {
        ImageError::Limits(_) => {
            format!(
                "it would take more memory than the {MAX_IMAGE_PIXELS} pixels that are accepted: scale it down"
            )
        }
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends too early: it is truncated".into()
        }
        other => other.to_string(),
    };
    Error::DecodeImage { path: path.to_owned(), format, message }
}

/// The format of an image, by the first bytes of its file.
fn format_of(head: &[u8]) -> Option<(ImageFormat, &'static str)> {
    Some(match head {
        [0x89, b'P', b'N', b'G', ..] => (ImageFormat::Png, "PNG"),
        [0xff, 0xd8, 0xff, ..] => (ImageFormat::Jpeg, "JPEG"),
        [b'G', b'I', b'F', b'8', ..] => (ImageFormat::Gif, "GIF"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => (ImageFormat::WebP, "WebP"),
        [b'B', b'M', ..] if head.len() >= 26 => (ImageFormat::Bmp, "BMP"),
        _ => return None,
    })
}

/// What a file that is none of these seems to be.
fn looks_like(head: &[u8]) -> String {
    let starts = |magic: &[u8]| head.starts_with(magic);
    let brand = head.get(8..12).filter(|_| head[4..8] == *b"ftyp");
    let known = match brand {
        Some(b"avif" | b"avis") => "an AVIF image",
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"mif1" | b"msf1") => "a HEIC image",
        Some(_) => "an MP4 or QuickTime video",
        None if head.is_empty() => "an empty file",
        None if starts(b"%PDF") => "a PDF document",
        None if starts(b"PK\x03\x04") => "a ZIP archive (also an engine file or a PyTorch checkpoint)",
        None if starts(&[0x1a, 0x45, 0xdf, 0xa3]) => "a Matroska or WebM video",
        None if starts(b"II*\0") || starts(b"MM\0*") => "a TIFF or raw camera image",
        None if starts(&[0xff, 0x0a]) || starts(b"\0\0\0\x0cJXL ") => "a JPEG XL image",
        None if starts(b"\0\0\0\x0cjP  ") => "a JPEG 2000 image",
        None if starts(b"8BPS") => "a Photoshop document",
        None if starts(&[0x1f, 0x8b]) => "a gzip archive",
        None if head.get(8..10).is_some_and(|s| s == b"{\"") => "a safetensors file",
        None => {
            let text = String::from_utf8_lossy(head);
            let start = text.trim_start().to_ascii_lowercase();
            let printable = !text.chars().any(|c| c.is_control() && !c.is_whitespace());
            match () {
                () if start.starts_with("<!doctype html") || start.starts_with("<html") => {
                    "a web page (HTML)"
                }
                () if start.starts_with("<svg") || (start.starts_with("<?xml") && start.contains("<svg")) => {
                    "an SVG drawing"
                }
                () if printable && !text.contains('\u{fffd}') => "a text file",
                () => {
                    let bytes: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
                    return format!("unknown data that starts with the bytes {}", bytes.join(" "));
                }
            }
        }
    };
    known.to_owned()
}
