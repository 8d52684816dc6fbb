//! Animated GIF, 256 colours a frame.

use std::io::{BufWriter, Write};
use std::path::Path;

use gif::{Encoder, EncodingError, Repeat};

use crate::place::PendingFile;
use crate::sink::{Video, VideoSink};
use crate::{Error, Frame};

/// Viewers slow a frame of less than 2 hundredths of a second down to 10.
const MAX_FPS: u32 = 50;
/// The palette search samples every n-th pixel: 1 is best and slow, 30 is worst. GIF is for previews.
const SPEED: i32 = 10;

pub(crate) struct Gif {
    video: Video,
    encoder: Encoder<BufWriter<PendingFile>>,
}

impl Gif {
    pub fn create(path: &Path, video: Video) -> Result<Self, Error> {
        if video.fps > MAX_FPS {
            return video.misfit(format!("expected at most {MAX_FPS} frames a second, found {}", video.fps));
        }
        let out = BufWriter::new(PendingFile::create(path)?);
        let encoder =
            Encoder::new(out, video.width as u16, video.height as u16, &[]).and_then(|mut encoder| {
                encoder.set_repeat(Repeat::Infinite)?;
                Ok(encoder)
            });
        let encoder = encoder.map_err(|e| video.encoder_failed(0, e))?;
        Ok(Self { video, encoder })
    }

    fn failed(&self, frame: usize, error: EncodingError) -> Error {
        match error {
            EncodingError::Io(e) => self.encoder.get_ref().get_ref().failed(e),
            other => self.video.encoder_failed(frame, other),
        }
    }
}

impl VideoSink for Gif {
    fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        let index = self.video.accept(frame)?;
        let mut picture =
            gif::Frame::from_rgb_speed(frame.width as u16, frame.height as u16, &frame.rgb, SPEED);
        picture.delay = (self.video.start_of(index + 1, 100) - self.video.start_of(index, 100)) as u16;
        self.encoder.write_frame(&picture).map_err(|e| self.failed(index, e))
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        self.video.complete()?;
        let Self { video, encoder } = *self;
        let mut out = encoder.into_inner().map_err(|e| video.encoder_failed(video.frames, e))?;
        out.flush().map_err(|e| out.get_ref().failed(e))?;
        let (file, _) = out.into_parts();
        file.commit()
    }
}
