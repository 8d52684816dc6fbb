//! The one door for videos: a path decides the format, frames go in one by one.

use std::fmt;
use std::path::Path;

use crate::place::place;
use crate::{Error, Frame, gif, mp4, pngs, tensors, webp};

/// The formats of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// H.264 in MP4 (`.mp4`).
    Mp4,
    /// Animated GIF (`.gif`).
    Gif,
    /// Animated WebP (`.webp`).
    Webp,
    /// A folder of `0000.png`, `0001.png`, ...
    Pngs,
    /// Raw frames (`.safetensors`): tensor `frames`, uint8 `[T, H, W, C]`, and the frame rate in the
    /// metadata as `fps`.
    Safetensors,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Mp4 => "MP4",
            Kind::Gif => "GIF",
            Kind::Webp => "WebP",
            Kind::Pngs => "PNG",
            Kind::Safetensors => "safetensors",
        })
    }
}

/// The format that a path asks for: by its extension in any case; a folder when it is one already, ends in
/// a slash or has no extension.
///
/// # Errors
/// [`Error::UnknownOutput`], which lists what is supported.
pub fn kind_of(path: &Path) -> Result<Kind, Error> {
    let unknown = |found: &str| Error::UnknownOutput { path: path.to_owned(), found: found.to_owned() };
    let name = path.to_string_lossy();
    if name.is_empty() {
        return Err(unknown("nothing"));
    }
    if name.ends_with(std::path::is_separator) || path.is_dir() {
        return Ok(Kind::Pngs);
    }
    let Some(extension) = path.extension() else { return Ok(Kind::Pngs) };
    match extension.to_string_lossy().to_ascii_lowercase().as_str() {
        "mp4" => Ok(Kind::Mp4),
        "gif" => Ok(Kind::Gif),
        "webp" => Ok(Kind::Webp),
        "safetensors" => Ok(Kind::Safetensors),
        other => Err(unknown(&format!("`.{other}`"))),
    }
}

/// Takes the frames of one video in their order.
///
/// Nothing is to be seen under the output's name before [`VideoSink::finish`] returns; a sink that is
/// dropped before that, or that failed, leaves nothing behind.
pub trait VideoSink: Send {
    /// Encodes the next frame.
    ///
    /// # Errors
    /// A frame of another size, one more than announced, or a disk that refuses. The video is lost then.
    fn push(&mut self, frame: &Frame) -> Result<(), Error>;

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// Fewer frames than announced, or a disk that refuses.
    fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// Opens the sink for `path`: `frames` frames of `width` x `height` pixels at `fps` frames a second.
///
/// Whatever can be known beforehand is checked here, before any frame is computed: the format, whether it
/// can hold such a video, and that the folder can be written.
///
/// # Errors
/// [`Error::UnknownOutput`], [`Error::DoesNotFit`], [`Error::OutputPlace`] or [`Error::Write`].
pub fn create(
    path: &Path,
    width: usize,
    height: usize,
    fps: u32,
    frames: usize,
) -> Result<Box<dyn VideoSink>, Error> {
    let kind = kind_of(path)?;
    if kind != Kind::Pngs && path.is_dir() {
        return Err(place(path, "it is a folder".into()));
    }
    let video = Video { kind, width, height, fps, frames, next: 0 };
    video.check()?;
    Ok(match kind {
        Kind::Mp4 => Box::new(mp4::Mp4::create(path, video)?),
        Kind::Gif => Box::new(gif::Gif::create(path, video)?),
        Kind::Webp => Box::new(webp::Webp::create(path, video)?),
        Kind::Pngs => Box::new(pngs::Pngs::create(path, video)?),
        Kind::Safetensors => Box::new(tensors::Tensors::create(path, video)?),
    })
}

/// What was announced of a video, and how much of it has come.
pub(crate) struct Video {
    pub kind: Kind,
    pub width: usize,
    pub height: usize,
    pub fps: u32,
    pub frames: usize,
    /// Index of the frame that comes next.
    pub next: usize,
}

/// Beyond this a frame lasts less than a millisecond, the finest step of any of the formats.
const MAX_FPS: u32 = 1000;
/// About a day at 12 frames a second, and far below where any counter of a format overflows.
const MAX_FRAMES: usize = 1 << 20;

impl Video {
    fn check(&self) -> Result<(), Error> {
        let (w, h) = (self.width, self.height);
        // (smallest side, largest long side, largest short side): openh264 accepts up to level 5.2, GIF
        // and WebP have 16 and 14 bits for a side; the others stop where a frame gets out of hand.
        let (least, long, short) = match self.kind {
            Kind::Mp4 => (16, 3840, 2160),
            Kind::Webp => (1, 16383, 16383),
            Kind::Gif | Kind::Pngs | Kind::Safetensors => (1, 32767, 32767),
        };
        if w.min(h) < least || w.max(h) > long || w.min(h) > short {
            let most = if long == short { format!("{long} a side") } else { format!("{long} x {short}") };
            return self.misfit(format!("expected between {least} and {most} pixels, found {w} x {h}"));
        }
        if self.kind == Kind::Mp4 && (w % 2 != 0 || h % 2 != 0) {
            let even = |n: usize| n + n % 2;
            return self.misfit(format!(
                "its colours are stored for 2 x 2 pixels at a time: expected even sides such as {} x {}, \
                 found {w} x {h}; .gif, .webp and PNG files take odd ones",
                even(w),
                even(h)
            ));
        }
        if self.fps == 0 || self.fps > MAX_FPS {
            return self.misfit(format!("expected 1 to {MAX_FPS} frames a second, found {}", self.fps));
        }
        if self.frames == 0 || self.frames > MAX_FRAMES {
            return self.misfit(format!("expected 1 to {MAX_FRAMES} frames, found {}", self.frames));
        }
        Ok(())
    }

    pub fn misfit<T>(&self, reason: String) -> Result<T, Error> {
        Err(Error::DoesNotFit { kind: self.kind, reason })
    }

    /// Accepts the next frame and returns its index.
    pub fn accept(&mut self, frame: &Frame) -> Result<usize, Error> {
        frame.check()?;
        let (expected, found) = ((self.width, self.height), (frame.width, frame.height));
        if expected != found {
            return Err(Error::FrameSize { index: self.next, expected, found });
        }
        if self.next == self.frames {
            return Err(Error::FrameCount { expected: self.frames, found: self.frames + 1 });
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Whether all frames have come.
    pub fn complete(&self) -> Result<(), Error> {
        if self.next == self.frames {
            return Ok(());
        }
        Err(Error::FrameCount { expected: self.frames, found: self.next })
    }

    /// When a frame starts, in `units` per second, rounded to the nearest unit. Durations taken as
    /// differences of these do not drift.
    pub fn start_of(&self, frame: usize, units: u64) -> u64 {
        let fps = u64::from(self.fps);
        (frame as u64 * units + fps / 2) / fps
    }

    pub fn encoder_failed(&self, frame: usize, message: impl fmt::Display) -> Error {
        Error::Encoder { kind: self.kind, frame, message: message.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_decides_the_kind() {
        let folder = tempfile::tempdir().unwrap();
        let dotted = folder.path().join("frames.v2.mp4");
        std::fs::create_dir(&dotted).unwrap();
        for (path, kind) in [
            ("a/b.mp4", Kind::Mp4),
            ("B.MP4", Kind::Mp4),
            ("x.y.gif", Kind::Gif),
            ("x.WebP", Kind::Webp),
            ("x.safetensors", Kind::Safetensors),
            ("frames", Kind::Pngs),
            ("frames.v2/", Kind::Pngs),
            (dotted.to_str().unwrap(), Kind::Pngs),
        ] {
            assert_eq!(kind_of(Path::new(path)).unwrap(), kind, "{path}");
        }
    }

    #[test]
    fn unknown_extensions_list_what_is_known() {
        for path in ["x.avi", "x.png", "x.mp4.part", "x.mpeg4", ""] {
            let message = kind_of(Path::new(path)).unwrap_err().to_string();
            for known in [".mp4", ".gif", ".webp", ".safetensors", "PNG"] {
                assert!(message.contains(known), "{message}");
            }
        }
        assert!(kind_of(Path::new("x.avi")).unwrap_err().to_string().contains("found `.avi`"));
    }

    #[test]
    fn frame_times_do_not_drift() {
        let video = Video { kind: Kind::Gif, width: 2, height: 2, fps: 16, frames: 17, next: 0 };
        let starts: Vec<_> = (0..=16).map(|i| video.start_of(i, 100)).collect();
        assert_eq!(starts[..5], [0, 6, 13, 19, 25]);
        assert_eq!(starts[16], 100);
    }
}
