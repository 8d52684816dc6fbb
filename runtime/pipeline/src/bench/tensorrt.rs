//! Stages in TensorRT, timed by the GPU.

use half::{bf16, f16};
use turbo_trt::{DType, DeviceBuffer, Graph, Stream};

use super::{Bencher, GpuMemory, Subject};
use crate::RunError;
use crate::backend::Tensor;
use crate::run::Run;
use crate::tensorrt::{Stage, TensorRt, layer_op};

/// Bytes that are written between two runs: more than any GPU's L2 cache holds, so that a run finds nothing in it.
const FLUSH: usize = 256 << 20;

struct TensorRtSubject {
    stage: Stage,
    memory: GpuMemory,
    stream: Stream,
    /// Written between two runs.
    flush: DeviceBuffer,
    /// Whether a video runs it as a CUDA graph: the steps of experts.
    is_step: bool,
    graph: Option<Graph>,
}

impl Bencher for TensorRt<'_> {
    fn machine(&self) -> String {
        let device = self.device();
        format!("{}, TensorRT {}", device.gpu().name, device.library().version())
    }

    fn load_alone(&mut self, run: &mut Run<'_>, name: &str) -> Result<Box<dyn Subject>, RunError> {
        let shim = self.device().library().shim();
        let before = shim.memory()?.free;
        let stage = self.load(run, name)?;
        let stream = self.stream().clone();
        stream.synchronize()?;
        let memory = GpuMemory {
            activation_bytes: stage.memory() as u64,
            loaded_bytes: before.saturating_sub(shim.memory()?.free),
        };
        let experts = &run.manifest().experts;
        let mut experts = std::iter::once(&experts.high).chain(&experts.low);
        let is_step = experts.any(|expert| expert.steps.iter().any(|step| step == name));
        let flush = DeviceBuffer::new(shim, FLUSH)?;
        Ok(Box::new(TensorRtSubject { stage, memory, stream, flush, is_step, graph: None }))
    }
}

impl Subject for TensorRtSubject {
    fn feed(&mut self, name: &str, values: Tensor) -> Result<(), RunError> {
        let (stage, stream) = (&self.stage, &self.stream);
        let tensor = stage.tensors().iter().find(|tensor| tensor.name == name);
        match tensor.map_or(DType::Other, |tensor| tensor.dtype) {
            DType::F32 => stage.upload(name, values.as_f32(), stream),
            DType::F16 => stage.upload(name, &narrowed(&values, f16::from_f32), stream),
            DType::Bf16 => stage.upload(name, &narrowed(&values, bf16::from_f32), stream),
            DType::I64 => stage.upload(name, values.as_i64(), stream),
            DType::I32 => stage.upload(name, values.as_i32(), stream),
            DType::I8 => stage.upload(name, values.as_i8(), stream),
            // Where the engine file and its plan do not agree, the number of bytes is refused.
            DType::U8 | DType::Bool | DType::F8 | DType::Other => stage.upload(name, values.as_u8(), stream),
        }
    }

    fn warm_up(&mut self) -> Result<(), RunError> {
        let TensorRtSubject { stage, stream, .. } = self;
        stage.enqueue(stream)?;
        stream.synchronize()?;
        if self.is_step {
            let mut graph = stream.capture(|stream| stage.enqueue(stream))?;
            // Its first launch takes longer.
            graph.launch(stream)?;
            stream.synchronize()?;
            self.graph = Some(graph);
        }
        Ok(())
    }

    fn forward(&mut self) -> Result<f64, RunError> {
        let stream = &self.stream;
        stream.fill(&self.flush, 0)?;
        let start = stream.record()?;
        match &mut self.graph {
            Some(graph) => graph.launch(stream)?,
            None => self.stage.enqueue(stream)?,
        }
        let end = stream.record()?;
        end.synchronize()?;
        Ok(f64::from(end.milliseconds_since(&start)?))
    }

    fn layers(&mut self) -> Result<Vec<(String, f64)>, RunError> {
        let layers = self.stage.profile(&self.stream)?;
        Ok(layers
            .iter()
            .map(|layer| (layer_op(&layer.layer).to_string(), f64::from(layer.milliseconds)))
            .collect())
    }

    fn memory(&self) -> Option<GpuMemory> {
        Some(self.memory)
    }
}

fn narrowed<T>(values: &Tensor, narrow: impl Fn(f32) -> T) -> Vec<T> {
    values.as_f32().iter().map(|&value| narrow(value)).collect()
}
