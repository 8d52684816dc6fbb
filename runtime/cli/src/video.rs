//! The video file, encoded on its own thread while the next frames are decoded.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use turbo_engine_file::Video as Shape;
use turbo_media::{Frame, PngFile, VideoSink, contact_sheet, evenly_spaced};
use turbo_pipeline::RunError;

/// Frames that may wait for the encoder: enough to never stall the decoder, few enough to stay small.
const WAITING: usize = 8;
/// Frames of a contact sheet, and its greatest width in pixels.
const SHEET: (usize, usize) = (8, 2048);

/// An opened output and what goes into its contact sheet.
pub struct Video {
    sink: Box<dyn VideoSink>,
    sheet: Option<PngFile>,
    chosen: Vec<usize>,
}

impl Video {
    /// Opens the output for a video of this shape.
    ///
    /// # Errors
    /// A format that is not known, a folder that cannot be written.
    pub fn create(path: &Path, shape: &Shape, sheet: Option<&Path>) -> Result<Video, RunError> {
        let (width, height) = (shape.width as usize, shape.height as usize);
        let frames = shape.frames as usize;
        let sheet = sheet.map(PngFile::create).transpose()?;
        let sink = turbo_media::create(path, width, height, shape.fps, frames)?;
        let chosen = if sheet.is_some() { evenly_spaced(frames, SHEET.0) } else { Vec::new() };
        Ok(Video { sink, sheet, chosen })
    }

    /// Runs `generate` and encodes the frames it hands over; gives its result and the seconds that finishing
    /// the file took after the last frame.
    ///
    /// # Errors
    /// What `generate` or the encoder returns; nothing is left behind then.
    pub fn fill<R>(
        self,
        generate: impl FnOnce(&mut dyn FnMut(Frame) -> Result<(), RunError>) -> Result<R, RunError>,
    ) -> Result<(R, f64), RunError> {
        let Video { mut sink, sheet, chosen } = self;
        let (send, receive) = sync_channel::<Frame>(WAITING);
        let mut kept = Vec::new();
        let mut index = 0;
        let result = std::thread::scope(|scope| {
            let encoder = scope.spawn(move || -> Result<Box<dyn VideoSink>, turbo_media::Error> {
                for frame in receive {
                    sink.push(&frame)?;
                }
                Ok(sink)
            });
            let generated = generate(&mut |frame| {
                if chosen.contains(&index) {
                    kept.push(frame.clone());
                }
                index += 1;
                // A closed channel means that the encoder failed; its error is taken below.
                send.send(frame).map_err(|_| RunError::Interrupted)
            });
            drop(send);
            let sink = encoder
                .join()
                .map_err(|_| RunError::Inconsistent("the video encoder stopped".to_string()))??;
            Ok::<_, RunError>((generated?, sink))
        });
        let (generated, sink) = result?;
        let start = Instant::now();
        if let Some(sheet) = sheet {
            sheet.write(&contact_sheet(&[kept], SHEET.1)?)?;
        }
        sink.finish()?;
        Ok((generated, start.elapsed().as_secs_f64()))
    }
}
