//! Graphs as TensorRT engines, fed from and read into host memory: what the GPU program tests with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use turbo_compile::engines::constants;
use turbo_compile::parser::Parser;
use turbo_graph::{DType as GraphType, Graph};
use turbo_pipeline::tensorrt::{Device, Stage};
use turbo_trt::{BuildOptions, DType, DeviceBuffer, Progress, Stream};

/// TensorRT on this machine's GPU.
pub struct Gpu {
    /// Library and GPU.
    pub device: Device,
    parser: RefCell<Parser>,
    /// What TensorRT learned about its layers' times, as turbo-compile keeps it from plan to plan.
    timings: RefCell<Vec<u8>>,
    stream: Stream,
    folder: tempfile::TempDir,
}

/// How long TensorRT looks for fast kernels of small graphs.
const EFFORT: u8 = 0;

/// Values by name, as f32 whatever their type on the GPU.
pub type Values = BTreeMap<String, Vec<f32>>;

/// Where the weights of one safetensors file lie in it.
struct Places {
    metadata: Metadata,
    name: String,
    /// Where the file's data starts.
    start: u64,
}

impl Places {
    fn open(path: &Path) -> Result<Places> {
        let file = std::fs::File::open(path).context("weights")?;
        // SAFETY: this program wrote the file and does not change it.
        let bytes = unsafe { memmap2::Mmap::map(&file) }?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Places { metadata, name, start: 8 + header as u64 })
    }
}

impl turbo_onnx::WeightPlaces for Places {
    fn place(&self, name: &str) -> Option<turbo_onnx::Place> {
        let (from, to) = self.metadata.info(name)?.data_offsets;
        let (offset, length) = (self.start + from as u64, (to - from) as u64);
        Some(turbo_onnx::Place { location: self.name.clone(), offset, length })
    }
}

impl Gpu {
    /// Loads TensorRT, from these folders or the usual places.
    pub fn open(libraries: Option<&Path>, tensorrt: Option<&Path>) -> Result<Gpu> {
        let device = Device::open(libraries, tensorrt)?;
        let parser = RefCell::new(Parser::new(device.library())?);
        let stream = Stream::new(device.library().shim())?;
        Ok(Gpu { device, parser, timings: RefCell::default(), stream, folder: tempfile::tempdir()? })
    }

    /// Builds a graph over the weights of a safetensors file; a stripped plan leaves them out. `level` says how long
    /// TensorRT looks for fast kernels of its own layers; `progress` hears what it is at.
    pub fn plan(
        &self,
        graph: &Graph,
        weights: Option<&Path>,
        (strip, level): (bool, u8),
        progress: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Vec<u8>> {
        let onnx = match weights {
            None => turbo_onnx::encode_with_weight_inputs(graph)?,
            Some(path) => turbo_onnx::encode(graph, &Places::open(path)?)?,
        };
        let mut parser = self.parser.borrow_mut();
        let mut network = parser.parse(&graph.name, graph, &onnx, weights.unwrap_or(self.folder.path()))?;
        let mut timings = self.timings.borrow_mut();
        let options = BuildOptions { strip, level, timing_cache: Some(&timings) };
        let goes_on = |said: Progress<'_>| {
            progress(said);
            true
        };
        let plan = network.build(&options, &goes_on)?;
        *timings = plan.timing_cache().to_vec();
        Ok(plan.bytes().to_vec())
    }

    /// Builds a graph over weights and loads it, as turbo-compile and turbo-run do: the plan is built without its
    /// weights, which are put in again. Without a search for fast kernels, for graphs that are small.
    pub fn engine(&self, graph: &Graph, weights: &[u8]) -> Result<Engine<'_>> {
        let mut stage = if graph.initializers().is_empty() {
            let plan = self.plan(graph, None, (false, EFFORT), &|_| ())?;
            Stage::load(&self.device, &graph.name, &plan, None, &[], &self.stream)?
        } else {
            let path = self.folder.path().join("weights.safetensors");
            std::fs::write(&path, weights)?;
            let plan = self.plan(graph, Some(&path), (true, EFFORT), &|_| ())?;
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

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, tensor::TensorView};
    use turbo_onnx::WeightPlaces;

    use super::*;

    #[test]
    fn weights_lie_where_their_places_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let view = |bytes| TensorView::new(Dtype::U8, vec![2], bytes).unwrap();
        let bytes = safetensors::serialize([("b", view(&[1, 2])), ("a", view(&[3, 4]))], None).unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let places = Places::open(file.path()).unwrap();
        for (name, expected) in [("a", [3, 4]), ("b", [1, 2])] {
            let place = places.place(name).unwrap();
            let start = place.offset as usize;
            assert_eq!(bytes[start..start + place.length as usize], expected);
        }
        assert!(places.place("c").is_none());
    }
}
