//! The ONNX Runtime CPU backend: the library, our ops in it, and sessions over mapped weights.

mod error;
mod library;
mod operator;
mod session;
mod tensor;
mod weights;

pub use error::BackendError;
pub use library::{Runtime, init};
pub use session::{Options, Session};
pub use tensor::Tensor;
pub use weights::Bytes;
