//! Graphs as TensorRT engines, fed from and read into host memory: what the GPU program tests with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use turbo_checkpoint::Checkpoint;
use turbo_graph::{DType as GraphType, Graph};
use turbo_pipeline::tensorrt::{Device, Stage, plugins};
use turbo_trt::{BuildOptions, Builder, DType, DeviceBuffer, Stream, Weights};

/// TensorRT on this machine's GPU.
pub struct Gpu {
    /// Library, GPU and plugins.
    pub device: Device,
    plugins: PathBuf,
    stream: Stream,
    folder: tempfile::TempDir,
}

/// Values by name, as f32 whatever their type on the GPU.
pub type Values = BTreeMap<String, Vec<f32>>;

/// Weights in one safetensors file.
struct Places {
    file: Checkpoint,
    start: u64,
}

impl turbo_onnx::WeightPlaces for Places {
    fn place(&self, name: &str) -> Option<turbo_onnx::Place> {
        let view = self.file.get(name)?;
        let base = self.file.tensors().map(|t| t.bytes().as_ptr().addr()).min()?;
        let offset = self.start + (view.bytes().as_ptr().addr() - base) as u64;
        Some(turbo_onnx::Place {
            location: "weights.safetensors".to_string(),
            offset,
            length: view.bytes().len() as u64,
        })
    }
}

impl Gpu {
    /// Loads TensorRT, from these folders or the usual places.
    pub fn open(libraries: Option<&Path>, tensorrt: Option<&Path>) -> Result<Gpu> {
        let device = Device::open(libraries, tensorrt)?;
        let plugins = plugins(device.library())?;
        let stream = Stream::new(device.library().shim())?;
        Ok(Gpu { device, plugins, stream, folder: tempfile::tempdir()? })
    }

    /// Builds a graph over weights, a safetensors file; a stripped plan leaves them out.
    pub fn plan(&self, graph: &Graph, weights: &[u8], strip: bool) -> Result<Vec<u8>> {
        let path = self.folder.path().join("weights.safetensors");
        std::fs::write(&path, weights)?;
        let header = weights.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let onnx = match weights.is_empty() {
            true => turbo_onnx::encode_with_weight_inputs(graph)?,
            false => {
                turbo_onnx::encode(graph, &Places { file: Checkpoint::open(&path)?, start: 8 + header })?
            }
        };
        let mut builder = Builder::new(self.device.library())?;
        builder.load_plugins(&self.plugins)?;
        let beside = self.folder.path().join("graph.onnx");
        let mut network = builder.parse(&onnx, &Weights { path: Some(&beside), data: Vec::new() })?;
        let wanted = graph.nodes().iter().filter(|node| node.domain == turbo_ops::DOMAIN).count();
        let found = network.layers()?.iter().filter(|layer| layer.plugin.is_some()).count();
        if found != wanted {
            bail!("{wanted} custom ops, {found} plugin layers");
        }
        let options = BuildOptions { tf32: false, strip, refit: strip, ..BuildOptions::default() };
        Ok(network.build(&options, &|_| true)?.bytes().to_vec())
    }

    /// Builds a graph over weights and loads it.
    pub fn engine(&self, graph: &Graph, weights: &[u8]) -> Result<Engine<'_>> {
        let plan = self.plan(graph, weights, false)?;
        let mut stage = Stage::load(&self.device, &graph.name, &plan, &[], &[], &self.stream)?;
        let arena = DeviceBuffer::new(self.device.library().shim(), stage.memory())?;
        stage.work_in(&arena)?;
        Ok(Engine { gpu: self, stage })
    }
}

/// A loaded engine.
pub struct Engine<'g> {
    gpu: &'g Gpu,
    stage: Stage,
}

impl Engine<'_> {
    /// Runs once. Inputs that are not given are zeros.
    pub fn run(&mut self, inputs: &[(&str, &[f32])]) -> Result<Values> {
        let stream = &self.gpu.stream;
        for (name, values) in inputs {
            let tensor = self.stage.tensors().iter().find(|t| t.name == *name);
            let bytes = to_bytes(tensor.with_context(|| format!("no input {name}"))?.dtype, values);
            self.stage.upload(name, &bytes, stream).with_context(|| format!("input {name}"))?;
        }
        self.stage.enqueue(stream)?;
        let outputs: Vec<_> = self.stage.tensors().iter().filter(|t| !t.is_input).cloned().collect();
        let read = |tensor: turbo_trt::TensorInfo| {
            let bytes: Vec<u8> = self.stage.download(&tensor.name, stream)?;
            Ok((tensor.name, to_f32(tensor.dtype, &bytes)))
        };
        outputs.into_iter().map(read).collect()
    }
}

fn to_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::I8 => values.iter().map(|&v| v as i8 as u8).collect(),
        DType::I32 => values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect(),
        DType::I64 => values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::Bf16 => pairs().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        DType::F16 => pairs().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::I8 => bytes.iter().map(|&b| f32::from(b as i8)).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

/// The activation type of GPU graphs.
pub const ACTIVATION: GraphType = GraphType::Bf16;
