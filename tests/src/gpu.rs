//! Graphs as TensorRT engines, fed from and read into host memory: what the GPU program tests with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use turbo_checkpoint::Checkpoint;
use turbo_compile::engines::constants;
use turbo_graph::{DType as GraphType, Graph};
use turbo_pipeline::tensorrt::{Device, Stage, plugins};
use turbo_trt::{BuildOptions, Builder, DType, DeviceBuffer, Stream};

/// TensorRT on this machine's GPU.
pub struct Gpu {
    /// Library, GPU and plugins.
    pub device: Device,
    /// Made for the first build: it takes seconds.
    builder: RefCell<Option<Builder>>,
    plugins: PathBuf,
    stream: Stream,
    folder: tempfile::TempDir,
}

/// How long TensorRT looks for fast kernels of small graphs.
const EFFORT: u8 = 0;

/// Values by name, as f32 whatever their type on the GPU.
pub type Values = BTreeMap<String, Vec<f32>>;

/// The weights of one safetensors file.
struct Places {
    file: Checkpoint,
    name: String,
    /// Where the file's data starts.
    start: u64,
}

impl Places {
    fn open(path: &Path) -> Result<Places> {
        let mut length = [0; 8];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut length)).context("weights")?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Places { file: Checkpoint::open(path)?, name, start: 8 + u64::from_le_bytes(length) })
    }
}

impl turbo_onnx::WeightPlaces for Places {
    fn place(&self, name: &str) -> Option<turbo_onnx::Place> {
        let view = self.file.get(name)?;
        let base = self.file.tensors().map(|t| t.bytes().as_ptr().addr()).min()?;
        let offset = self.start + (view.bytes().as_ptr().addr() - base) as u64;
        Some(turbo_onnx::Place { location: self.name.clone(), offset, length: view.bytes().len() as u64 })
    }
}

impl Gpu {
    /// Loads TensorRT, from these folders or the usual places.
    pub fn open(libraries: Option<&Path>, tensorrt: Option<&Path>) -> Result<Gpu> {
        let device = Device::open(libraries, tensorrt)?;
        let plugins = plugins(device.library())?;
        let stream = Stream::new(device.library().shim())?;
        Ok(Gpu { device, builder: RefCell::default(), plugins, stream, folder: tempfile::tempdir()? })
    }

    /// Builds a graph over the weights of a safetensors file; a stripped plan leaves them out. `level` says how long
    /// TensorRT looks for fast kernels of its own layers.
    pub fn plan(&self, graph: &Graph, weights: Option<&Path>, strip: bool, level: u8) -> Result<Vec<u8>> {
        let onnx = match weights {
            None => turbo_onnx::encode_with_weight_inputs(graph)?,
            Some(path) => turbo_onnx::encode(graph, &Places::open(path)?)?,
        };
        let mut builder = self.builder.borrow_mut();
        let builder = match &mut *builder {
            Some(builder) => builder,
            none => {
                let mut builder = Builder::new(self.device.library())?;
                builder.load_plugins(&self.plugins)?;
                none.insert(builder)
            }
        };
        // The graph seems to lie beside its weights.
        let beside = weights.unwrap_or(self.folder.path()).with_extension("onnx");
        let mut network = builder.parse(&onnx, &beside)?;
        let wanted = graph.nodes().iter().filter(|node| node.domain == turbo_ops::DOMAIN).count();
        let found = network.layers()?.iter().filter(|layer| layer.plugin.is_some()).count();
        if found != wanted {
            bail!("{wanted} custom ops, {found} plugin layers");
        }
        let options = BuildOptions { tf32: false, strip, refit: strip, level, ..BuildOptions::default() };
        Ok(network.build(&options, &|_| true)?.bytes().to_vec())
    }

    /// Builds a graph over weights and loads it, as turbo-compile and turbo-run do: the plan is built without its
    /// weights, which are put in again. Without a search for fast kernels, for graphs that are small.
    pub fn engine(&self, graph: &Graph, weights: &[u8]) -> Result<Engine<'_>> {
        let mut stage = if graph.initializers().is_empty() {
            let plan = self.plan(graph, None, false, EFFORT)?;
            Stage::load(&self.device, &graph.name, &plan, None, &[], &self.stream)?
        } else {
            let path = self.folder.path().join("weights.safetensors");
            std::fs::write(&path, weights)?;
            let plan = self.plan(graph, Some(&path), true, EFFORT)?;
            let constants = constants(graph)?;
            let weights = [weights, &constants];
            Stage::load(&self.device, &graph.name, &plan, Some(&weights), &[], &self.stream)?
        };
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
