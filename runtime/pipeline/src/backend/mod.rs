//! The ONNX Runtime CPU backend: the library, our ops in it, and sessions over mapped weights.
//!
//! # Memory
//!
//! Weights are inputs of the graph, and each run lends ONNX Runtime the mapped bytes, so they are page cache and
//! never the process's own memory. External initializers would be the usual way, but ONNX Runtime (1.23 to 1.32)
//! copies those that come from memory, and reads the others from files of their own only. Measured with 1 GiB of
//! bf16 weights that 32 linear layers of 4096 x 4096 widen to f32, on 2 cores:
//!
//! | weights as | load | own memory after load | at the end of the second run |
//! |---|---|---|---|
//! | external initializers in memory, no folding or prepacking, nodes in the graph's order | 2.4 s | 1026 MiB | 5347 MiB |
//! | inputs | 0.01 s | 2 MiB | 2 MiB, 64 MiB while a layer runs |
//!
//! The demo's VAE decoder runs as fast with inputs as with initializers that ONNX Runtime may fold and pack (0.55 to
//! 0.61 s a latent frame both ways).
//!
//! A widened weight lives for one layer, because the compiler writes the nodes that depend on weights alone first
//! (see `turbo_onnx`); otherwise ONNX Runtime widens all of them before the first layer.
//!
//! The memory arena is on: without it every large output is mapped and cleared anew (2 cores of a Zen 5, VAE decoder of
//! the demo at 832x480, 33 frames: 27.2 s and 3357 MiB at the peak with it, 36.0 s and 3127 MiB without). A stage's
//! arena goes with its session, which the pipeline drops as soon as the stage is done. The memory pattern is off: it
//! allocates the second run's tensors once more as one block and gains no time.

mod error;
mod library;
mod operator;
mod session;
mod tensor;
#[cfg(test)]
mod tests;
mod weights;

pub use error::BackendError;
pub use library::{Runtime, init};
pub use session::{Options, Session};
pub use tensor::Tensor;
pub use weights::Bytes;
