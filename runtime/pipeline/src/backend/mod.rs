//! The ONNX Runtime CPU backend: the library, our ops in it, and sessions over mapped weights.

mod error;
mod library;
mod operator;
mod session;

pub use error::BackendError;
pub use library::{Runtime, init};
pub use session::{Bytes, Data, Options, Session, Tensor};
