//! The typed graph that networks are built in.
//!
//! A [`Graph`] is a list of nodes over values whose element type and static shape are known when the value is
//! made, so a network is checked while it is built. Building never stops half-way: the first mistake is kept
//! and returned by [`Graph::finish`], which lets model code read like the upstream module it follows.
//!
//! The graph does no I/O and knows neither protobuf nor any runtime; weights are named here and supplied by
//! whoever writes the graph out.

mod dtype;
mod graph;
mod standard;
mod text;

pub use dtype::DType;
pub use graph::{Attr, Graph, GraphError, Initializer, Node, Payload, Value};
