//! Pictures from files: what is read, and what is not one.
#![allow(clippy::unwrap_used)] // a helper of a test may panic like the test

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::TempDir;
use turbo_media::{Error, Frame, load_image};

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 9) as u8, (y * 17) as u8, 255 - (x + y) as u8]))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// A file whose name says nothing about its content.
fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.dat");
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn load(content: &[u8]) -> Result<Frame, Error> {
    let (_folder, path) = file(content);
    load_image(&path)
}

#[test]
fn formats_are_told_apart_by_content() {
    let source = picture(23, 14);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let frame = load(&encoded(&source.clone().into(), format)).unwrap();
        assert_eq!((frame.width, frame.height), (23, 14), "{format:?}");
        assert!(frame.rgb == *source.as_raw(), "{format:?}");
    }
    for format in [ImageFormat::Jpeg, ImageFormat::Gif] {
        let frame = load(&encoded(&source.clone().into(), format)).unwrap();
        assert_eq!((frame.width, frame.height), (23, 14), "{format:?}");
        let worst = frame.rgb.iter().zip(source.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(60), "{format:?}: {worst:?}");
    }
}

#[test]
fn greys_and_deep_colours_become_rgb() {
    let grey = image::GrayImage::from_fn(3, 1, |x, _| image::Luma([x as u8 * 100]));
    assert_eq!(
        load(&encoded(&grey.into(), ImageFormat::Png)).unwrap().rgb,
        [0, 0, 0, 100, 100, 100, 200, 200, 200]
    );
    let deep = image::ImageBuffer::from_fn(2, 1, |x, _| Rgb([x as u16 * 65535, 257 * 7, 0]));
    let deep = DynamicImage::ImageRgb16(deep);
    assert_eq!(load(&encoded(&deep, ImageFormat::Png)).unwrap().rgb, [0, 7, 0, 255, 7, 0]);
}

#[test]
fn transparency_is_flattened_onto_black() {
    let alpha = RgbaImage::from_fn(3, 1, |x, _| Rgba([200, 100, 50, [0, 128, 255][x as usize]]));
    let frame = load(&encoded(&alpha.into(), ImageFormat::Png)).unwrap();
    assert_eq!(frame.rgb, [0, 0, 0, 100, 50, 25, 200, 100, 50]);
}

/// A JPEG with the Exif orientation put in front of everything else.
fn oriented(orientation: u8) -> Vec<u8> {
    // Left half red, right half blue; 16 x 8.
    let source = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) });
    let jpeg = encoded(&source.into(), ImageFormat::Jpeg);
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let mut out = vec![0xff, 0xd8, 0xff, 0xe1];
    out.extend((exif.len() as u16 + 2).to_be_bytes());
    out.extend(exif);
    out.extend(&jpeg[2..]);
    out
}

#[test]
fn the_cameras_orientation_is_applied() {
    let red_at = |frame: &Frame, x: usize, y: usize| frame.rgb[(y * frame.width + x) * 3] > 125;
    let plain = load(&oriented(1)).unwrap();
    assert_eq!((plain.width, plain.height), (16, 8));
    assert!(red_at(&plain, 1, 4) && !red_at(&plain, 14, 4));
    let turned = load(&oriented(6)).unwrap(); // to be turned clockwise: the left comes to the top
    assert_eq!((turned.width, turned.height), (8, 16));
    assert!(red_at(&turned, 4, 1) && !red_at(&turned, 4, 14));
    let mirrored = load(&oriented(2)).unwrap();
    assert!(!red_at(&mirrored, 1, 4) && red_at(&mirrored, 14, 4));
}

#[test]
fn what_is_no_image_is_named() {
    let zip = b"PK\x03\x04....";
    let safetensors = [&8u64.to_le_bytes()[..], b"{\"a\":{}}"].concat();
    for (content, named) in [
        (&b""[..], "an empty file"),
        (b"A small red circle moves.", "a text file"),
        ("Ein kleiner roter Kreis \u{1f534}".as_bytes(), "a text file"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF document"),
        (zip, "a ZIP archive"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "an MP4 or QuickTime video"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC image"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF image"),
        (b"II*\0\x08\0\0\0", "a TIFF"),
        (&safetensors, "a safetensors file"),
        (b"\x01\x02\x03\x00\xfe\xff", "unknown data that starts with the bytes 01 02 03 00 fe ff"),
        (b"BM", "a text file"),
    ] {
        let error = load(content).unwrap_err();
        assert!(matches!(error, Error::NotAnImage { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(&format!("found {named}")), "{message}");
        assert!(message.contains("picture.dat") && message.contains("PNG, JPEG"), "{message}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(load_image(folder.path()).unwrap_err().to_string().contains("a folder"));
    assert!(matches!(load_image(Path::new("no/such/file.png")), Err(Error::ReadImage { .. })));
}

#[test]
fn truncated_images_are_errors() {
    let source: DynamicImage = picture(40, 30).into();
    for (format, name) in [
        (ImageFormat::Png, "PNG"),
        (ImageFormat::Jpeg, "JPEG"),
        (ImageFormat::Bmp, "BMP"),
        (ImageFormat::WebP, "WebP"),
        (ImageFormat::Gif, "GIF"),
    ] {
        let whole = encoded(&source, format);
        for part in [30, whole.len() / 4, whole.len() / 2] {
            match load(&whole[..part]) {
                Err(Error::DecodeImage { format, .. }) => assert_eq!(format, name),
                other => panic!("{format:?} cut to {part} of {}: {other:?}", whole.len()),
            }
        }
    }
}

/// A PNG header that announces a size; the pixels are missing.
fn announced(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let crc = chunk.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    });
    let mut out = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    out.extend(chunk);
    out.extend((!crc).to_be_bytes());
    out.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    out
}

#[test]
fn sizes_without_sense_are_refused_before_memory_is_taken() {
    for (width, height) in [(40_000, 10), (10, 40_000), (12_000, 12_000)] {
        let error = load(&announced(width, height)).unwrap_err();
        assert!(matches!(error, Error::ImageTooLarge { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{width} x {height}")), "{error}");
    }
    for (width, height) in [(100_000, 100_000), (i32::MAX as u32, 1)] {
        let message = load(&announced(width, height)).unwrap_err().to_string();
        assert!(message.contains("scale it down"), "{message}");
    }
    for (width, height) in [(0, 10), (10, 0), (0, 0), (u32::MAX, u32::MAX)] {
        let error = load(&announced(width, height)).unwrap_err();
        assert!(matches!(error, Error::DecodeImage { .. }), "{error}");
    }
    // No pixels in a BMP.
    let mut bmp = encoded(&picture(2, 2).into(), ImageFormat::Bmp);
    bmp[18..26].fill(0);
    assert!(matches!(load(&bmp), Err(Error::DecodeImage { .. })));
}

#[test]
fn flipped_bits_never_panic() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Gif]
    {
        let whole = encoded(&picture(16, 12).into(), format);
        for at in (0..whole.len() * 8).step_by(17) {
            let mut damaged = whole.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            if let Ok(frame) = load(&damaged) {
                assert_eq!(frame.rgb.len(), frame.width * frame.height * 3, "{format:?}, bit {at}");
            }
        }
    }
}
