//! What runs the suites' graphs, and how near it must come.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use turbo_compile::Choices;
use turbo_engine_file::EngineFile;
use turbo_graph::{DType, Graph};
use turbo_models::{Params, Weights};
use turbo_pipeline::Engine;
use turbo_pipeline::backend::Tensor;

use super::compiled::Compiled;

/// Runs graphs.
pub trait Backend {
    /// Type of activations: what the tolerances depend on.
    fn compute(&self) -> DType;

    /// Loads a graph over the weights of a network; inner values of the graph, the taps, become f32 outputs.
    ///
    /// # Errors
    /// A tap that the graph does not have, and what the runtime says.
    fn load<'b>(
        &'b self,
        weights: Option<&Compiled>,
        graph: Graph,
        taps: &[&str],
    ) -> Result<Box<dyn Loaded + 'b>>;

    /// Choices of turbo-compile that make engine files for it, with what they keep under a folder.
    fn choices(&self, folder: &Path) -> Choices;

    /// Opens an engine file that was made by its choices.
    ///
    /// # Errors
    /// What the file needs and this machine does not have.
    fn open(&self, file: EngineFile) -> Result<Engine>;
}

impl dyn Backend + '_ {
    /// Whether it computes in f32, as the reference did.
    pub fn is_exact(&self) -> bool {
        self.compute() == DType::F32
    }

    /// The tolerance that applies: of f32 code or of bf16 code.
    pub fn bound(&self, f32: f64, bf16: f64) -> f64 {
        if self.is_exact() { f32 } else { bf16 }
    }

    /// Weights as turbo-compile gives them to the graphs of this backend.
    pub fn params<'w>(&self, weights: &'w dyn Weights) -> Params<'w> {
        match self.is_exact() {
            true => Params::new(weights, self.compute()),
            false => Params::converted(weights, self.compute()),
        }
    }

    /// As `params`, of the VAE, which is f16 on a GPU.
    pub fn vae_params<'w>(&self, weights: &'w dyn Weights) -> Params<'w> {
        let params = self.params(weights);
        if self.is_exact() { params } else { params.in_type(DType::F16) }
    }
}

/// A loaded graph.
pub trait Loaded {
    /// Runs once; every input is given.
    ///
    /// # Errors
    /// Inputs that do not fit, and what the runtime says.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs>;
}

/// Outputs of a graph and its taps, by name.
#[derive(Default)]
pub struct Outputs(BTreeMap<String, Tensor>);

/// What the name of a tap as an output starts with.
const TAP: &str = "tap.";

impl FromIterator<(String, Tensor)> for Outputs {
    fn from_iter<T: IntoIterator<Item = (String, Tensor)>>(outputs: T) -> Self {
        let name = |name: String| name.strip_prefix(TAP).map(str::to_string).unwrap_or(name);
        Outputs(outputs.into_iter().map(|(n, tensor)| (name(n), tensor)).collect())
    }
}

impl Outputs {
    /// All of them, as inputs of another graph.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Takes one out.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// One of them.
    ///
    /// # Errors
    /// None of that name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("no output {name}"))
    }

    /// Elements of one, of any type, as f32.
    ///
    /// # Errors
    /// None of that name.
    pub fn get(&self, name: &str) -> Result<Vec<f32>> {
        Ok(elements(self.tensor(name)?))
    }
}

/// Elements of any type as f32, which holds INT8 values and the numbers of blocks and tokens exactly.
pub(super) fn elements(tensor: &Tensor) -> Vec<f32> {
    let i8s = tensor.as_i8().iter().map(|&v| f32::from(v));
    let i32s = tensor.as_i32().iter().map(|&v| v as f32);
    let i64s = tensor.as_i64().iter().map(|&v| v as f32);
    tensor.as_f32().iter().copied().chain(i8s).chain(i32s).chain(i64s).collect()
}

/// Makes inner values outputs, in f32.
pub(super) fn tap(mut graph: Graph, taps: &[&str]) -> Result<Graph> {
    for tap in taps {
        let value = graph.find(tap).with_context(|| format!("no value {tap} in {}", graph.name))?;
        let wide = graph.cast(value, DType::F32);
        graph.output(&format!("{TAP}{tap}"), wide);
    }
    Ok(graph.finish()?)
}
