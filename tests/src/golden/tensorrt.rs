//! The suites on a GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use turbo_compile::Choices;
use turbo_compile::choices::Target;
use turbo_engine_file::EngineFile;
use turbo_graph::{DType, Graph};
use turbo_pipeline::Engine;
use turbo_pipeline::backend::Tensor;
use turbo_pipeline::tensorrt::Device;

use super::backend::{Backend, Loaded, Outputs, elements, tap};
use super::compiled::Compiled;
use crate::gpu::{self, ACTIVATION, Gpu};

/// TensorRT, in bf16.
pub struct TensorRt<'g> {
    /// Builds and runs the engines.
    pub gpu: &'g Gpu,
    /// Where TensorRT is, for turbo-compile and turbo-run.
    pub tensorrt: Option<PathBuf>,
    /// Folder of our GPU libraries, for the same.
    pub gpu_libraries: Option<PathBuf>,
}

impl Backend for TensorRt<'_> {
    fn compute(&self) -> DType {
        ACTIVATION
    }

    fn load<'b>(
        &'b self,
        weights: Option<&Compiled>,
        graph: Graph,
        taps: &[&str],
    ) -> Result<Box<dyn Loaded + 'b>> {
        let graph = tap(graph, taps)?;
        let weights = weights.map(|weights| weights.weights(&graph)).transpose()?;
        let engine = self.gpu.engine(&graph, &weights.unwrap_or_default())?;
        let outputs = graph.outputs().iter();
        let shapes = outputs.map(|&v| (graph.value_name(v).to_string(), graph.shape(v).to_vec())).collect();
        Ok(Box::new(OnGpu { engine, shapes }))
    }

    fn choices(&self, folder: &Path) -> Choices {
        Choices {
            target: Some(Target::Trt),
            tensorrt: self.tensorrt.clone(),
            gpu_libraries: self.gpu_libraries.clone(),
            build_cache: Some(folder.join("cache")),
            // These networks are too small to be worth a search for fast kernels.
            effort: Some(0),
            ..Choices::default()
        }
    }

    fn open(&self, file: EngineFile) -> Result<Engine> {
        let device = Device::open(self.gpu_libraries.as_deref(), self.tensorrt.as_deref())?;
        Ok(Engine::new(file, device)?)
    }
}

/// A TensorRT engine, whose outputs come as f32.
struct OnGpu<'g> {
    engine: gpu::Engine<'g>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Loaded for OnGpu<'_> {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs> {
        let values: Vec<(&str, Vec<f32>)> =
            inputs.iter().map(|(name, tensor)| (*name, elements(tensor))).collect();
        let inputs: Vec<(&str, &[f32])> = values.iter().map(|(name, v)| (*name, v.as_slice())).collect();
        let shaped = |(name, values): (String, Vec<f32>)| {
            let shape = self.shapes.get(&name).cloned().unwrap_or_default();
            (name, Tensor::f32(shape, values))
        };
        Ok(self.engine.run(&inputs)?.into_iter().map(shaped).collect())
    }
}
