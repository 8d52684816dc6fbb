//! Images in, videos out: everything between pixels and files.
//!
//! Out: [`create`] opens a [`VideoSink`] for a path, by its extension an H.264 MP4, a GIF, an animated
//! WebP, a folder of PNG files or the raw frames as safetensors. Frames are encoded as they come, and the
//! output gets its name only when it is whole. In: [`load_image`], [`resize`] and [`to_tensor`] turn a
//! picture into what the image encoder of an image-to-video model expects.

mod error;
mod frame;
mod gif;
mod load;
mod mp4;
mod place;
mod pngs;
mod resize;
mod sheet;
mod sink;
mod tensors;
mod webp;
mod yuv;

pub use error::Error;
pub use frame::{Frame, frames_from_video_chunk, to_tensor};
pub use load::{MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, load_image};
pub use resize::{adaptive_size, resize};
pub use sheet::{PngFile, contact_sheet, evenly_spaced, write_png};
pub use sink::{Kind, VideoSink, create, kind_of};
