//! TensorRT and CUDA's runtime, through the shim `libturbo_trt-<major>.so`.
//!
//! The shim (`runtime/trt/shim`) is C++ compiled for one major version of TensorRT; this crate loads it at
//! run time and turns its C functions into values that cannot be misused: what must outlive something is
//! owned by it, and what a captured graph touches lives as long as the graph. No enumeration or virtual table
//! of TensorRT is known here.
//!
//! ```text
//! Shim ── Library ── Builder ── Network ── Plan
//!   │        └────── Runtime ── Engine ── Refit, Context
//!   └─ Gpu, DeviceBuffer, PinnedBuffer, Stream, Event, Graph, Sampler
//! ```
//!
//! Device memory is not memory of this process: two streams that race on a buffer give wrong numbers, never
//! undefined behaviour here, so buffers are shared freely and ordering is the caller's.
//!
//! CUDA's current GPU belongs to a thread: a thread that uses another GPU than the first calls
//! [`Shim::select`].

mod api;
mod builder;
mod context;
mod error;
mod gpu;
mod graph;
mod library;
mod memory;
mod places;
mod resources;
mod runtime;
mod sampler;
mod shim;
mod stream;
mod types;

pub use builder::{BuildOptions, Builder, Layer, Network, Plan, Progress, end_process};
pub use context::{Context, LayerTime};
pub use error::{Error, NoGpu, Version};
pub use gpu::{Gpu, MemoryInfo};
pub use graph::Graph;
pub use library::Library;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use places::Places;
pub use runtime::{Engine, Refit, RefitWeight, Runtime};
pub use sampler::Sampler;
pub use shim::{Level, LogLine, Shim};
pub use stream::{Event, Rows, Stream, Transfer};
pub use types::{DType, TensorInfo};
