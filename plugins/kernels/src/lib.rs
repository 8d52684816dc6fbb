//! The ops' CUDA kernels on their own, without TensorRT: test cases against the references, and timings.
//!
//! The kernels come from `libturbo_kernels.so` (`capi/turbo_kernels.h`), loaded at run time, so that this crate
//! builds and its own tests run on machines without CUDA.

pub mod bench;
pub mod check;
pub mod elements;
pub mod floor;
pub mod library;
pub mod memory;
pub mod model_cases;
pub mod node;
pub mod report;
pub mod tolerance;
