//! The suites in bf16 without a GPU: that graphs, weights and inputs fit together needs none, only the numbers do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use turbo_compile::Choices;
use turbo_compile::stages::weight_forms;
use turbo_engine_file::EngineFile;
use turbo_graph::{DType, Graph, Payload};
use turbo_pipeline::Engine;
use turbo_pipeline::backend::Tensor;

use super::backend::{Backend, Loaded, Outputs, elements, tap};
use super::compiled::Compiled;
use super::{SUITES, run};
use crate::gpu::ACTIVATION;

/// Makes what a GPU would be given, and answers zeros.
struct Dry;

/// A graph that checks what it is given.
struct Checked {
    graph: Graph,
}

impl Backend for Dry {
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
        let file = weights.map(|weights| weights.weights(&graph)).transpose()?;
        let stored = file.as_deref().map(SafeTensors::deserialize).transpose()?;
        for (name, (dtype, shape)) in weight_forms(std::iter::once(&graph))? {
            let view = stored.as_ref().context("no weights")?.tensor(&name)?;
            let bytes = dtype.size() * shape.iter().product::<usize>();
            ensure!(view.shape() == shape && view.data().len() == bytes, "{name} is {:?}", view.shape());
        }
        // A plan asks for its weights by the names of initializers, which must be those that they are stored under.
        for initializer in graph.initializers() {
            if let Payload::Weight(name) = &initializer.payload {
                let called = graph.value_name(initializer.value);
                ensure!(called == name, "{name} is called {called} in {}", graph.name);
            }
        }
        turbo_onnx::encode_with_weight_inputs(&graph)?;
        Ok(Box::new(Checked { graph }))
    }

    fn choices(&self, _: &Path) -> Choices {
        Choices::default()
    }

    fn open(&self, _: EngineFile) -> Result<Engine> {
        bail!("no GPU")
    }
}

impl Loaded for Checked {
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs> {
        let graph = &self.graph;
        let given: BTreeMap<&str, usize> =
            inputs.iter().map(|(name, tensor)| (*name, elements(tensor).len())).collect();
        let count = |value| graph.shape(value).iter().product::<usize>();
        let wanted: BTreeMap<&str, usize> =
            graph.inputs().iter().map(|&v| (graph.value_name(v), count(v))).collect();
        ensure!(given == wanted, "{given:?} given to {}, which takes {wanted:?}", graph.name);
        let zeros = |&v: &turbo_graph::Value| {
            let shape = graph.shape(v).to_vec();
            (graph.value_name(v).to_string(), Tensor::f32(shape, vec![0.0; count(v)]))
        };
        Ok(graph.outputs().iter().map(zeros).collect())
    }
}

#[test]
fn golden_suites_in_bf16_can_be_made() {
    for (name, suite) in SUITES.into_iter().filter(|(name, _)| !name.starts_with("e2e")) {
        for case in run(name, suite, &Dry).into_cases() {
            assert!(case.error.is_none(), "{name}, {}: {:#}", case.name, case.error.unwrap());
        }
    }
}
