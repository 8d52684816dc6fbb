//! Animated WebP. Frames that look the same as their predecessor are stored as one that lasts longer.

use std::io::Write;
use std::path::Path;

use webp_animation::ColorMode;
use webp_animation::{Encoder, EncoderOptions, EncodingConfig, EncodingType, LossyEncodingConfig};

use crate::place::PendingFile;
use crate::sink::{Video, VideoSink};
use crate::{Error, Frame};

/// libwebp's quality, 0 to 100.
const QUALITY: f32 = 95.0;

pub(crate) struct Webp {
    video: Video,
    encoder: SendEncoder,
    out: PendingFile,
}

/// The encoder holds raw pointers and is therefore not `Send` by itself.
struct SendEncoder(Encoder);

// SAFETY: the pointers lead to libwebp's encoder and picture, plain heap memory that this value alone
// owns; libwebp keeps no thread-local state, and `Encoder` has no method that works through `&self`.
unsafe impl Send for SendEncoder {}

impl Webp {
    pub fn create(path: &Path, video: Video) -> Result<Self, Error> {
        let options = EncoderOptions {
            color_mode: ColorMode::Rgb,
            // Every frame whole. As differences, areas that change by a level or two at a time would stay
            // as they were: libwebp takes them for equal, and a slow fade would never be seen.
            kmin: 0,
            kmax: 1,
            // Each frame in whichever way is smaller: flat synthetic pictures are so without loss.
            allow_mixed: true,
            encoding_config: Some(EncodingConfig {
                encoding_type: EncodingType::Lossy(LossyEncodingConfig {
                    use_sharp_yuv: true,
                    ..LossyEncodingConfig::new_from_picture_preset()
                }),
                quality: QUALITY,
                ..EncodingConfig::default()
            }),
            ..EncoderOptions::default()
        };
        let encoder = Encoder::new_with_options((video.width as u32, video.height as u32), options)
            .map_err(|e| video.encoder_failed(0, e))?;
        Ok(Self { encoder: SendEncoder(encoder), out: PendingFile::create(path)?, video })
    }
}

impl VideoSink for Webp {
    fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        let index = self.video.accept(frame)?;
        let start = self.video.start_of(index, 1000) as i32;
        self.encoder.0.add_frame(&frame.rgb, start).map_err(|e| self.video.encoder_failed(index, e))
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        self.video.complete()?;
        let Self { video, encoder, mut out } = *self;
        let end = video.start_of(video.frames, 1000) as i32;
        let data = encoder.0.finalize(end).map_err(|e| video.encoder_failed(video.frames, e))?;
        out.write_all(&data).map_err(|e| out.failed(e))?;
        out.commit()
    }
}
