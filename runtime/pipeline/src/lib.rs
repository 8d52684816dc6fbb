//! Engine file and prompt to frames.
//!
//! [`Engine`] is an opened engine file; [`Engine::generate`] runs its stages one after the other, each loaded
//! when it is needed and dropped when it is done, and hands finished frames to the caller while the VAE is
//! still decoding the next ones. [`Engine::bench`] times them.

pub mod backend;
mod bench;
mod cache;
mod error;
mod executor;
mod generate;
mod onnx;
mod report;
mod run;
mod stage;
pub mod tensorrt;

pub use bench::{BenchReport, BenchRequest, GpuMemory, OpTime, Spread, StageBench};
pub use cache::EmbeddingCache;
pub use error::RunError;
pub use generate::{Backend, Engine, Events, Precision, Request, Silent};
pub use report::{Report, Timing};
