//! Random weights and inputs of a graph: values of an ordinary size, never zeros, which run faster.

use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;
use safetensors::{Dtype, tensor::TensorView};
use turbo_graph::{DType, Graph, Payload};
use turbo_ops::Rng;
use turbo_ops::common::quant::Format;
use turbo_pipeline::tensorrt::Stage;
use turbo_trt::Stream;

/// Random inputs of a graph that bf16 holds exactly.
pub fn inputs(graph: &Graph) -> Vec<(String, Vec<f32>)> {
    let mut rng = Rng::new(7);
    let input = |&value: &turbo_graph::Value| {
        let count: usize = graph.shape(value).iter().product();
        (graph.value_name(value).to_string(), (0..count).map(|_| rng.normal() as f32).collect())
    };
    graph.inputs().iter().map(input).collect()
}

/// Random inputs on the GPU.
pub fn fill(stage: &Stage, stream: &Stream) -> Result<()> {
    let mut rng = Rng::new(11);
    let pattern: Vec<f32> = (0..PATTERN).map(|_| rng.normal() as f32).collect();
    for tensor in stage.tensors().iter().filter(|tensor| tensor.is_input && !tensor.name.starts_with("from."))
    {
        let count: usize = tensor.shape.iter().product();
        let values = pattern.iter().copied().cycle().take(count);
        match tensor.bytes / count.max(1) {
            2 => {
                let values: Vec<half::bf16> = values.map(half::bf16::from_f32).collect();
                stage.upload(&tensor.name, &values, stream)?;
            }
            _ => stage.upload(&tensor.name, &values.collect::<Vec<f32>>(), stream)?,
        }
    }
    Ok(())
}

/// Elements of a random pattern that a weight repeats: a prime, so that no two rows are alike.
const PATTERN: usize = 65_521;

/// A tensor that repeats a pattern. It is written out only while it is stored: 28 GB of them are no rarity.
struct Repeated {
    dtype: Dtype,
    shape: Vec<usize>,
    pattern: Vec<u8>,
    bytes: usize,
}

impl safetensors::View for Repeated {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.bytes);
        while bytes.len() < self.bytes {
            bytes.extend_from_slice(&self.pattern[..self.pattern.len().min(self.bytes - bytes.len())]);
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Random bytes that are numbers. Those of E4M3 are a third larger than INT8's, which the scales need not know.
fn bytes(rng: &mut Rng, format: Format, count: usize) -> Vec<u8> {
    let byte = |bits: u64| if format.value(bits as i8).is_nan() { 0 } else { bits as u8 };
    (0..count).map(|_| byte(rng.bits())).collect()
}

/// Writes random weights of a graph to a safetensors file, of a size that keeps activations near one. All but scales
/// are values of bf16.
pub fn weights(graph: &Graph, to: &Path) -> Result<()> {
    let mut rng = Rng::new(5);
    let mut tensors: Vec<(String, Repeated)> = Vec::new();
    for initializer in graph.initializers() {
        let Payload::Weight(name) = &initializer.payload else { continue };
        let shape = graph.shape(initializer.value).to_vec();
        let count: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1) as f32;
        let matrix = 1.7 / columns.sqrt();
        let mut values = |center: f32, size: f32| -> Vec<half::bf16> {
            let unit = |rng: &mut Rng| 2.0 * rng.uniform() as f32 - 1.0;
            (0..count.min(PATTERN)).map(|_| half::bf16::from_f32(center + size * unit(&mut rng))).collect()
        };
        let f32s = |values: Vec<half::bf16>| values.iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
        let (dtype, pattern): (Dtype, Vec<u8>) = match graph.dtype(initializer.value) {
            DType::I8 => {
                let format = if name.ends_with("fp8_weight") { Format::E4m3 } else { Format::Int8 };
                (Dtype::I8, bytes(&mut rng, format, count.min(PATTERN)))
            }
            DType::F32 if name.ends_with(".scale") => {
                let scale = 1.0 / (74.0 * (columns * 128.0).sqrt());
                (Dtype::F32, scale.to_le_bytes().to_vec())
            }
            DType::F32 if name.contains("norm") => (Dtype::F32, f32s(values(1.0, 0.1))),
            DType::F32 => (Dtype::F32, f32s(values(0.0, if shape.len() == 2 { matrix } else { 0.1 }))),
            _ => (Dtype::BF16, values(0.0, matrix).iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        let bytes = count * graph.dtype(initializer.value).size();
        tensors.push((name.clone(), Repeated { dtype, shape, pattern, bytes }));
    }
    let part = to.with_extension("part");
    safetensors::serialize_to_file(tensors, None, &part)?;
    Ok(std::fs::rename(&part, to)?)
}

fn serialize(tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views: Vec<(String, TensorView<'_>)> = views.collect::<Result<_>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// The weights of a GPU graph in the types and shapes that another graph has them in.
pub fn widened(graph: &Graph, weights: &[u8]) -> Result<Vec<u8>> {
    let stored = safetensors::SafeTensors::deserialize(weights)?;
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for initializer in graph.initializers() {
        let Payload::Weight(name) = &initializer.payload else { continue };
        let view = stored.tensor(name)?;
        let shape = graph.shape(initializer.value).to_vec();
        let (dtype, bytes) = match (view.dtype(), graph.dtype(initializer.value)) {
            (Dtype::F32, DType::Bf16) => {
                let values = view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
                let bytes = values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
                (Dtype::BF16, bytes)
            }
            (Dtype::BF16, DType::F32) => {
                let values = view.data().as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b));
                (Dtype::F32, values.flat_map(|v| v.to_f32().to_le_bytes()).collect())
            }
            (dtype, _) => (dtype, view.data().to_vec()),
        };
        tensors.push((name.clone(), dtype, shape, bytes));
    }
    serialize(&tensors)
}
