//! Writes graphs as ONNX files with external data. The only crate that sees protobuf.

mod proto;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};

use prost::Message;
use proto::{
    Attribute, Dimension, Entry, GraphProto, Model, NodeProto, OperatorSet, Shape, TensorProto, TensorType,
    TypeProto, ValueInfo,
};
use turbo_graph::{Attr, DType, Graph, Node, Payload, Value};

/// Version of the standard operators that graphs are built from: the first with `Gelu`.
pub const OPSET: i64 = 20;
/// Version of the operators of any other domain.
const CUSTOM_OPSET: i64 = 1;
/// File format: the first that ONNX 1.16 and later write, and that every reader of [`OPSET`] in use takes.
const IR_VERSION: i64 = 10;
/// Protobuf's own limit for one message.
const MAX_BYTES: usize = i32::MAX as usize;

/// Where the bytes of a stored weight lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File, relative to the folder of the ONNX file and below it; slashes on every system.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Says where stored weights lie.
pub trait WeightPlaces {
    /// The place of the weight of that name.
    fn place(&self, name: &str) -> Option<Place>;
}

/// A graph that ONNX cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// A weight has no place.
    #[error("weight {0} is stored nowhere")]
    NoPlace(String),
    /// A weight's place has another size than its type and shape say.
    #[error("weight {name} takes {expected} bytes, its place has {found}")]
    Length {
        /// Weight name.
        name: String,
        /// Bytes of its type and shape.
        expected: u64,
        /// Bytes of its place.
        found: u64,
    },
    /// A weight's file that readers of ONNX refuse.
    #[error("weight {name} lies in `{location}`, expected a relative path below the ONNX file's folder")]
    Location {
        /// Weight name.
        name: String,
        /// The file.
        location: String,
    },
    /// A weight's place ends beyond the largest offset that readers of ONNX take.
    #[error("weight {name} at byte {offset} of its file is beyond what ONNX can address")]
    Offset {
        /// Weight name.
        name: String,
        /// First byte.
        offset: u64,
    },
    /// A value with more elements or bytes than can be counted.
    #[error("{value} has the shape {shape:?}, which is too large for ONNX")]
    Shape {
        /// Value name.
        value: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// More than protobuf can hold in one message.
    #[error("the graph takes {0} bytes without its weights, ONNX files hold at most {MAX_BYTES}")]
    TooLarge(usize),
}

/// The ONNX file of a graph for any reader: small constants inside, weights as external data.
///
/// # Errors
/// Weights without a fitting place, shapes beyond 63 bits, a graph of more than 2 GiB.
pub fn encode(graph: &Graph, places: &dyn WeightPlaces) -> Result<Vec<u8>, OnnxError> {
    encode_within(graph, Some(places), MAX_BYTES)
}

/// The ONNX file of a graph for a runtime that has the weights mapped: each weight is a graph input of its name,
/// after the graph's own inputs. Every version of ONNX Runtime reads inputs where they lie; external data it
/// copies, or reads only from files of their own.
///
/// # Errors
/// Shapes beyond 63 bits, a graph of more than 2 GiB.
pub fn encode_with_weight_inputs(graph: &Graph) -> Result<Vec<u8>, OnnxError> {
    encode_within(graph, None, MAX_BYTES)
}

fn encode_within(
    graph: &Graph,
    places: Option<&dyn WeightPlaces>,
    limit: usize,
) -> Result<Vec<u8>, OnnxError> {
    for value in graph.values() {
        byte_size(graph, value)?;
    }
    let nodes = order(graph);
    let domains: BTreeSet<&str> = nodes.iter().map(|n| n.domain.as_str()).filter(|d| !d.is_empty()).collect();
    let mut opset_import = vec![OperatorSet { domain: String::new(), version: OPSET }];
    opset_import.extend(domains.iter().map(|d| OperatorSet { domain: d.to_string(), version: CUSTOM_OPSET }));
    let infos = |values: &[Value]| values.iter().map(|&v| value_info(graph, v)).collect::<Vec<_>>();
    let mut input = infos(graph.inputs());
    let mut initializer = Vec::new();
    for i in graph.initializers() {
        match (&i.payload, places) {
            (Payload::Inline(bytes), _) => {
                initializer.push(TensorProto { raw_data: Some(bytes.clone()), ..tensor(graph, i.value) });
            }
            (Payload::Weight(name), Some(places)) => {
                initializer.push(external(graph, i.value, name, places)?);
            }
            (Payload::Weight(_), None) => input.push(value_info(graph, i.value)),
        }
    }
    let outputs: HashSet<Value> = graph.outputs().iter().copied().collect();
    let inner = nodes.iter().flat_map(|n| &n.outputs).filter(|v| !outputs.contains(v));
    let proto = GraphProto {
        node: nodes.iter().map(|n| node(graph, n)).collect(),
        name: graph.name.clone(),
        initializer,
        input,
        output: infos(graph.outputs()),
        value_info: inner.map(|&v| value_info(graph, v)).collect(),
    };
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: "turbo-compile".to_string(),
        producer_version: env!("CARGO_PKG_VERSION").to_string(),
        graph: Some(proto),
        opset_import,
    };
    match model.encoded_len() {
        len if len > limit => Err(OnnxError::TooLarge(len)),
        _ => Ok(model.encode_to_vec()),
    }
}

/// The nodes, those that depend on weights and constants alone first.
///
/// ONNX Runtime runs a node as soon as its results are needed, and of a node's producers the last one in the
/// file first. Weights that are widened ahead of all else in the file are thus widened right before their use,
/// one at a time; in the order of the graph, all of them would be, and held, before the first layer runs.
fn order(graph: &Graph) -> Vec<&Node> {
    let mut fixed: HashSet<Value> = graph.initializers().iter().map(|i| i.value).collect();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for node in graph.nodes() {
        if node.inputs.iter().flatten().all(|v| fixed.contains(v)) {
            fixed.extend(&node.outputs);
            first.push(node);
        } else {
            rest.push(node);
        }
    }
    first.extend(rest);
    first
}

/// `TensorProto.DataType`.
fn data_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::Bf16 => 16,
        DType::F8E4M3 => 17,
    }
}

/// Bytes of a value, when ONNX can count them.
fn byte_size(graph: &Graph, value: Value) -> Result<u64, OnnxError> {
    let (dtype, shape) = (graph.dtype(value), graph.shape(value));
    let bytes = shape.iter().try_fold(dtype.size(), |bytes, &d| bytes.checked_mul(d));
    let fits = shape.iter().all(|&d| i64::try_from(d).is_ok());
    match bytes.filter(|&bytes| fits && i64::try_from(bytes).is_ok()) {
        Some(bytes) => Ok(bytes as u64),
        None => Err(OnnxError::Shape { value: graph.value_name(value).to_string(), shape: shape.to_vec() }),
    }
}

fn value_info(graph: &Graph, value: Value) -> ValueInfo {
    let dim = |&d: &usize| Dimension { dim_value: Some(d as i64) };
    let shape = Shape { dim: graph.shape(value).iter().map(dim).collect() };
    let tensor = TensorType { elem_type: data_type(graph.dtype(value)), shape: Some(shape) };
    ValueInfo {
        name: graph.value_name(value).to_string(),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
    }
}

fn node(graph: &Graph, node: &Node) -> NodeProto {
    let name = |v: &Value| graph.value_name(*v).to_string();
    NodeProto {
        input: node.inputs.iter().map(|v| v.as_ref().map(name).unwrap_or_default()).collect(),
        output: node.outputs.iter().map(name).collect(),
        name: node.name.clone(),
        op_type: node.op.clone(),
        attribute: node.attrs.iter().map(|(name, value)| attribute(name, value)).collect(),
        domain: node.domain.clone(),
    }
}

/// `AttributeProto`, type numbers of `AttributeProto.AttributeType`.
fn attribute(name: &str, value: &Attr) -> Attribute {
    let mut a = Attribute { name: name.to_string(), ..Attribute::default() };
    match value {
        Attr::Float(f) => (a.f, a.r#type) = (Some(*f), 1),
        Attr::Int(i) => (a.i, a.r#type) = (Some(*i), 2),
        Attr::Str(s) => (a.s, a.r#type) = (Some(s.clone().into_bytes()), 3),
        Attr::Ints(v) => (a.ints, a.r#type) = (v.clone(), 7),
    }
    a
}

/// An initializer without its elements.
fn tensor(graph: &Graph, value: Value) -> TensorProto {
    TensorProto {
        dims: graph.shape(value).iter().map(|&d| d as i64).collect(),
        data_type: data_type(graph.dtype(value)),
        name: graph.value_name(value).to_string(),
        ..TensorProto::default()
    }
}

fn external(
    graph: &Graph,
    value: Value,
    name: &str,
    places: &dyn WeightPlaces,
) -> Result<TensorProto, OnnxError> {
    let place = places.place(name).ok_or_else(|| OnnxError::NoPlace(name.to_string()))?;
    let expected = byte_size(graph, value)?;
    if place.length != expected {
        return Err(OnnxError::Length { name: name.to_string(), expected, found: place.length });
    }
    if !is_below(&place.location) {
        return Err(OnnxError::Location { name: name.to_string(), location: place.location });
    }
    if place.offset.checked_add(place.length).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(OnnxError::Offset { name: name.to_string(), offset: place.offset });
    }
    // Exactly these keys: TensorRT's parser refuses any other.
    let entry = |key: &str, value: String| Entry { key: key.to_string(), value };
    let external_data = vec![
        entry("location", place.location),
        entry("offset", place.offset.to_string()),
        entry("length", place.length.to_string()),
    ];
    Ok(TensorProto { external_data, data_location: Some(1), ..tensor(graph, value) })
}

/// Whether a location names a file below the ONNX file's folder, on any system.
fn is_below(location: &str) -> bool {
    let named = |part: &str| !matches!(part, "" | "." | "..");
    !location.contains(['\\', ':']) && location.split('/').all(named)
}
