//! The raw frames as safetensors: the lossless form for programs.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::place::PendingFile;
use crate::sink::{Video, VideoSink};
use crate::{Error, Frame};

pub(crate) struct Tensors {
    video: Video,
    out: BufWriter<PendingFile>,
}

impl Tensors {
    /// The shape is known beforehand, so the header goes out first and the frames follow as they come.
    pub fn create(path: &Path, video: Video) -> Result<Self, Error> {
        let Video { width, height, fps, frames, .. } = video;
        let bytes = [frames, height, width].iter().fold(3, |n, side| n * *side as u64);
        let mut header = json!({
            "__metadata__": { "fps": fps.to_string() },
            "frames": { "dtype": "U8", "shape": [frames, height, width, 3], "data_offsets": [0, bytes] },
        })
        .to_string();
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut out = BufWriter::new(PendingFile::create(path)?);
        out.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| out.write_all(header.as_bytes()))
            .map_err(|e| out.get_ref().failed(e))?;
        Ok(Self { video, out })
    }
}

impl VideoSink for Tensors {
    fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        self.video.accept(frame)?;
        self.out.write_all(&frame.rgb).map_err(|e| self.out.get_ref().failed(e))
    }

    fn finish(mut self: Box<Self>) -> Result<(), Error> {
        self.video.complete()?;
        self.out.flush().map_err(|e| self.out.get_ref().failed(e))?;
        let (file, _) = self.out.into_parts();
        file.commit()
    }
}
