//! What can go wrong between pixels and files.

use std::io;
use std::path::PathBuf;

use crate::Kind;

/// An image that cannot be read or a video that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of an output says nothing that this crate can write.
    #[error(
        "cannot tell from `{path}` what to write: expected a name ending in .mp4, .gif, .webp or .safetensors, \
         or a folder (no extension, or a final `/`) for PNG files, found {found}"
    )]
    UnknownOutput {
        /// The path as given.
        path: PathBuf,
        /// What stands where the extension should be.
        found: String,
    },

    /// The place of an output does not suit it.
    #[error("cannot write `{path}`: {reason}")]
    OutputPlace {
        /// The path as given.
        path: PathBuf,
        /// What stands in the way, and what to do.
        reason: String,
    },

    /// The file system refused.
    #[error("cannot {action} `{path}`")]
    Write {
        /// The path that was to be written.
        path: PathBuf,
        /// What was being done with it.
        action: &'static str,
        /// The system's own words.
        source: io::Error,
    },

    /// The format cannot hold such a video.
    #[error("{kind} cannot hold this video: {reason}")]
    DoesNotFit {
        /// The format.
        kind: Kind,
        /// Which limit, the value found, and what would fit.
        reason: String,
    },

    /// A frame's pixel buffer is not `width * height * 3` bytes.
    #[error("frame of {width} x {height} RGB pixels has {found} bytes, expected {width} * {height} * 3")]
    FrameBytes {
        /// Stated width.
        width: usize,
        /// Stated height.
        height: usize,
        /// Bytes in the buffer.
        found: usize,
    },

    /// A frame differs in size from the video it belongs to.
    #[error("frame {index} is {} x {}, expected {} x {} as announced for the video", found.0, found.1, expected.0, expected.1)]
    FrameSize {
        /// Its place in the video, from 0.
        index: usize,
        /// `(width, height)` of the video.
        expected: (usize, usize),
        /// `(width, height)` of the frame.
        found: (usize, usize),
    },

    /// More or fewer frames than announced.
    #[error("the video was announced with {expected} frames, found {found}")]
    FrameCount {
        /// Frames announced.
        expected: usize,
        /// Frames given.
        found: usize,
    },

    /// Values that are no colours.
    #[error(
        "{count} of {total} values of the video are NaN or infinite: the model overflowed or its weights are damaged"
    )]
    NotFinite {
        /// How many.
        count: usize,
        /// Of how many.
        total: usize,
    },

    /// A buffer or a layout that does not have the announced shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which buffer.
        what: &'static str,
        /// The shape or length it should have.
        expected: String,
        /// The one it has.
        found: String,
    },

    /// An encoder failed, which no valid input should make it do.
    #[error("the {kind} encoder failed at frame {frame}: {message}")]
    Encoder {
        /// The format.
        kind: Kind,
        /// The frame being written, from 0.
        frame: usize,
        /// The encoder's own words.
        message: String,
    },

    /// An image file cannot be read.
    #[error("cannot read the image `{path}`")]
    ReadImage {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },

    /// A file is no image, or none of a known format.
    #[error("`{path}` is not an image that can be read: expected PNG, JPEG, WebP, BMP or GIF, found {found}")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What its first bytes look like.
        found: String,
    },

    /// An image file that is damaged or uses an unsupported variant of its format.
    #[error("cannot decode the {format} image `{path}`: {message}")]
    DecodeImage {
        /// The file.
        path: PathBuf,
        /// Its format, by its first bytes.
        format: &'static str,
        /// The decoder's own words.
        message: String,
    },

    /// An image beyond the limits that bound the memory of decoding.
    #[error(
        "the image `{path}` is {width} x {height}, more than the {max_side} pixels a side and {max_pixels} pixels in all \
         that are accepted: scale it down"
    )]
    ImageTooLarge {
        /// The file.
        path: PathBuf,
        /// Width in its header.
        width: u32,
        /// Height in its header.
        height: u32,
        /// Largest accepted side.
        max_side: u32,
        /// Largest accepted area.
        max_pixels: u64,
    },
}
