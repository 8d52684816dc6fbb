//! Reads safetensors and PyTorch checkpoints, memory-mapped, and nothing else.
//!
//! [`Checkpoint::open`] gives named tensors; [`scan`] lists the checkpoints of a folder. This crate knows
//! file formats and not models: names, shapes and types come out as they are in the file. Files come from
//! strangers, so every number is checked before it is used, nothing in a file can run code, and memory is
//! bounded by the size of the file.
//!
//! ```no_run
//! # fn main() -> Result<(), turbo_checkpoint::Error> {
//! let checkpoint = turbo_checkpoint::Checkpoint::open("model.safetensors".as_ref())?;
//! for tensor in checkpoint.tensors() {
//!     turbo_checkpoint::check_finite(&tensor)?;
//!     println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
//! }
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod dtype;
mod error;
mod finite;
pub mod index;
mod map;
pub mod safetensors;
mod scan;
mod sniff;
mod tensor;
pub mod torch;

pub use checkpoint::Checkpoint;
pub use dtype::DType;
pub use error::{Error, NotFinite};
pub use finite::check_finite;
pub use scan::{Source, scan};
pub use sniff::{Format, sniff};
pub use tensor::TensorView;
