//! The networks as graph builders, their configurations and checkpoint names.
//!
//! A network is a function from a configuration, a shape and its weights to a [`turbo_graph::Graph`], one
//! function per upstream module and in the upstream's order. Nothing here does I/O.

pub mod dit;
pub mod umt5;
pub mod vae;
pub mod weights;

pub use weights::{Params, Weights};
