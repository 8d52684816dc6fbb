//! The suites on the CPU.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use turbo_compile::Choices;
use turbo_engine_file::EngineFile;
use turbo_graph::{DType, Graph};
use turbo_pipeline::Engine;
use turbo_pipeline::backend::{Options, Runtime, Session, Tensor, init};

use super::backend::{Backend, Loaded, Outputs, tap};
use super::compiled::Compiled;
use crate::vectors::runtime;

/// ONNX Runtime, in f32.
pub struct Cpu(Runtime);

impl Cpu {
    /// ONNX Runtime; `None` where it is not there and need not be.
    pub fn open() -> Option<Cpu> {
        runtime().map(Cpu)
    }
}

impl Backend for Cpu {
    fn compute(&self) -> DType {
        DType::F32
    }

    fn load<'b>(
        &'b self,
        weights: Option<&Compiled>,
        graph: Graph,
        taps: &[&str],
    ) -> Result<Box<dyn Loaded + 'b>> {
        let graph = tap(graph, taps)?;
        let onnx = turbo_onnx::encode_with_weight_inputs(&graph)?;
        let mut options =
            Options { stage: &graph.name, graph: &onnx, weights: vec![], cancelled: Arc::default() };
        if let Some(weights) = weights {
            options.weights.push(("weights".to_string(), Arc::new(weights.weights(&graph)?)));
        }
        Ok(Box::new(Session::load(&self.0, options)?))
    }

    fn choices(&self, _: &Path) -> Choices {
        Choices::default()
    }

    fn open(&self, file: EngineFile) -> Result<Engine> {
        Ok(Engine::new(file, init(None, None)?)?)
    }
}

impl Loaded for Session {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs> {
        Ok(Session::run(self, inputs)?.into_iter().collect())
    }
}
