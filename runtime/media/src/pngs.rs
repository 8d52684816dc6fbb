//! A folder of PNG files, `0000.png` and on: the lossless form for people.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageError};

use crate::place::{PendingFolder, place};
use crate::sink::{Video, VideoSink};
use crate::{Error, Frame};

pub(crate) struct Pngs {
    video: Video,
    folder: PendingFolder,
    digits: usize,
}

impl Pngs {
    pub fn create(path: &Path, video: Video) -> Result<Self, Error> {
        refuse_longer_video(path, video.frames)?;
        let digits = (video.frames - 1).to_string().len().max(4);
        Ok(Self { video, folder: PendingFolder::create(path)?, digits })
    }
}

/// Frames that this video will not replace would look like its continuation.
fn refuse_longer_video(path: &Path, frames: usize) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(digits) = name.strip_suffix(".png").filter(|d| d.len() >= 4) else { continue };
        let Ok(number) = digits.parse::<usize>() else { continue };
        let reason = if number >= frames {
            format!("it holds `{name}` of a longer video, and this one ends before it")
        } else if entry.path().is_dir() {
            format!("`{name}` in it is a folder")
        } else {
            continue;
        };
        return Err(place(path, format!("{reason}: remove it or choose another folder")));
    }
    Ok(())
}

impl VideoSink for Pngs {
    fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        let index = self.video.accept(frame)?;
        let name = format!("{index:0digits$}.png", digits = self.digits);
        let mut out = BufWriter::new(self.folder.file(name.clone())?);
        encode(&mut out, frame).and_then(|()| out.flush()).map_err(|e| self.folder.failed(&name, e))
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        self.video.complete()?;
        self.folder.commit()
    }
}

/// Writes one PNG file.
pub(crate) fn encode(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let encoder = PngEncoder::new_with_quality(out, CompressionType::Default, FilterType::Adaptive);
    let written =
        encoder.write_image(&frame.rgb, frame.width as u32, frame.height as u32, ExtendedColorType::Rgb8);
    written.map_err(|e| match e {
        ImageError::IoError(e) => e,
        other => io::Error::other(other),
    })
}
