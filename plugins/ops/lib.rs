//! The custom ops: one folder per op, and everything about an op in its folder.
//!
//! A folder's `mod.rs` holds the definition ([`Op`]): name, version, attributes, inputs and outputs with named
//! axes, documentation, a naive f64 reference that is the meaning of the op, an expansion into standard ONNX
//! operators where one exists, and test cases with tolerances. Beside it stand the kernels. ONNX nodes, the
//! registration with ONNX Runtime, the C++ traits of the TensorRT plugins and the documentation tables are
//! derived from the definition.
//!
//! Nothing here does I/O or knows CUDA.

pub mod attention;
pub mod block_map;
pub mod cases;
pub mod common;
pub mod linear;
pub mod norm;
pub mod norm_quantize;
pub mod norm_rope;
pub mod quantize;
pub mod sage_attention;
pub mod sage_sla;
pub mod schema;
pub mod sla;
pub mod tensor;
pub mod w8a8_linear;
pub mod w8a8_linear_qkv;
pub mod w8a8_linear_quantize;
pub mod w8a8_linear_residual;

pub use cases::{Case, Rng, Tol};
pub use schema::{AttrDef, AttrKind, AttrValue, Attrs, Dim, Dims, Op, OpError, TensorDef, Ty};
pub use tensor::{Data, DataMut, DataRef, Tensor, TensorMut, TensorRef};

/// Domain of the custom ops in ONNX files, and their plugin namespace.
pub const DOMAIN: &str = "turbo";

/// Every op. Adding one is a folder and a line here.
pub const ALL: &[&Op] = &[
    &attention::OP,
    &block_map::OP,
    &linear::OP,
    &norm::OP,
    &norm_quantize::OP,
    &norm_rope::OP,
    &quantize::OP,
    &sage_attention::OP,
    &sage_sla::OP,
    &sla::OP,
    &w8a8_linear::OP,
    &w8a8_linear_qkv::OP,
    &w8a8_linear_quantize::OP,
    &w8a8_linear_residual::OP,
];

/// The op of that name.
pub fn find(name: &str) -> Option<&'static Op> {
    ALL.iter().copied().find(|op| op.name == name)
}

/// Appends a node of the op of that name; an unknown op is a mistake that the graph keeps.
pub fn emit(
    g: &mut turbo_graph::Graph,
    name: &str,
    attrs: Attrs,
    inputs: &[turbo_graph::Value],
) -> Vec<turbo_graph::Value> {
    match find(name) {
        Some(op) => op.node(g, &attrs, inputs),
        None => {
            g.fail(name, "there is no such op".to_string());
            inputs.to_vec()
        }
    }
}
