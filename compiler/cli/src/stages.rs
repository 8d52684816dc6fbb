//! The stages of a plan as graphs.

use std::collections::{BTreeMap, BTreeSet};

use turbo_graph::{DType, Graph, GraphError, Payload};
use turbo_models::{Params, Weights, dit, umt5, vae};
use turbo_sampler::MAX_STEPS;

use crate::CompileError;
use crate::choices::{Flavor, Size, Target};
use crate::resolve::{Plan, VAE_STRIDE, Video, distinct};

/// One network with static shapes, ready to be written.
pub struct Stage {
    /// Name in the manifest, the same for every video.
    pub name: String,
    /// Indexes of the plan's videos that it serves.
    pub videos: Vec<usize>,
    /// Name of its files without extension: `dit`, or `dit-832x480x81` where other videos have others.
    pub file: String,
    /// The network.
    pub graph: Graph,
    /// Which stored weights it uses.
    pub weights: Source,
    /// What a streaming stage carries on.
    pub state: Vec<vae::State>,
}

/// Which weights a stage uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The transformer, by position: the only or high-noise one, the low-noise one.
    Dit(usize),
    /// The text encoder.
    TextEncoder,
    /// The VAE.
    Vae,
}

/// The stored weights of each network, as graph builders ask for them.
pub struct Networks<'a> {
    /// One transformer or two experts.
    pub dits: Vec<&'a dyn Weights>,
    /// The text encoder.
    pub text_encoder: &'a dyn Weights,
    /// The VAE.
    pub vae: &'a dyn Weights,
}

/// Batch of every stage: one video.
const BATCH: usize = 1;

/// Stage name of a transformer.
pub fn expert_name(index: usize, experts: usize) -> &'static str {
    match (experts, index) {
        (1, _) => "dit",
        (_, 0) => "dit_high",
        _ => "dit_low",
    }
}

/// Stage names of the parts of a transformer, in the order in which they run.
pub fn step_names(expert: &str, parts: usize) -> Vec<String> {
    match parts {
        1 => vec![expert.to_string()],
        _ => (1..=parts).map(|part| format!("{expert}_{part}of{parts}")).collect(),
    }
}

/// What the shapes of a stage depend on.
#[derive(Clone, Copy)]
enum For {
    /// Nothing of the video.
    All,
    /// Width and height: a streaming VAE works on one latent frame at a time, however many there are.
    Size(Size),
    /// The frames as well.
    Video(Video),
}

impl For {
    fn includes(self, video: &Video) -> bool {
        match self {
            For::All => true,
            For::Size(size) => video.size == size,
            For::Video(one) => *video == one,
        }
    }

    /// Name of the stage's files among those of other videos.
    fn file(self, name: &str) -> String {
        match self {
            For::All => name.to_string(),
            For::Size(size) => format!("{name}-{size}"),
            For::Video(Video { size, frames, .. }) => format!("{name}-{size}x{frames}"),
        }
    }
}

/// Builds every stage that the videos of this plan need, in the order in which each video first needs them. What
/// several videos need is built once.
///
/// # Errors
/// The network and what does not fit in it, down to the tensor.
pub fn build(plan: &Plan, networks: &Networks<'_>) -> Result<Vec<Stage>, (Source, GraphError)> {
    let mut stages = Vec::new();
    let mut add = |name: &str, of: For, weights: Source, graph: Result<Graph, GraphError>, state| {
        let graph = graph.and_then(|graph| match plan.flavor {
            Flavor::Custom => Ok(graph),
            Flavor::Standard => turbo_ops::schema::expand(&graph),
        });
        let graph = graph.map_err(|error| (weights, error))?;
        let videos: Vec<usize> =
            plan.videos.iter().enumerate().filter(|(_, video)| of.includes(video)).map(|(i, _)| i).collect();
        let file = if videos.len() == plan.videos.len() { name.to_string() } else { of.file(name) };
        stages.push(Stage { name: name.to_string(), videos, file, graph, weights, state });
        Ok::<(), (Source, GraphError)>(())
    };
    let params = |weights| params(plan.target, weights);
    let sizes = distinct(plan.videos.iter().map(|video| video.size));

    let text = params(networks.text_encoder);
    let encoder = umt5::text_encoder(&plan.text_encoder, text, BATCH, plan.dit.text_len);
    add("text_encoder", For::All, Source::TextEncoder, encoder, vec![])?;
    if plan.dit.is_i2v() {
        for &size in &sizes {
            for (name, first) in [("vae_encoder_first", true), ("vae_encoder", false)] {
                let (graph, state) = split(vae_encoder(plan, networks.vae, size, first));
                add(name, For::Size(size), Source::Vae, graph, state)?;
            }
        }
    }
    for (index, &weights) in networks.dits.iter().enumerate() {
        let name = expert_name(index, networks.dits.len());
        let source = Source::Dit(index);
        let context = dit::context(&plan.dit, &plan.recipe, params(weights), BATCH, MAX_STEPS);
        add(&format!("{name}_context"), For::All, source, context, vec![])?;
        let parts = dit::parts(plan.dit.layers, plan.parts);
        for &video in &plan.videos {
            for (name, blocks) in step_names(name, plan.parts).iter().zip(&parts) {
                let (params, size, blocks) = (params(weights), video.latent, blocks.clone());
                let part = dit::denoiser_part(&plan.dit, &plan.recipe, params, BATCH, size, blocks);
                add(name, For::Video(video), source, part, vec![])?;
            }
        }
    }
    for &size in &sizes {
        for (name, first) in [("vae_decoder_first", true), ("vae_decoder", false)] {
            let (graph, state) = split(vae_decoder(plan, networks.vae, size, first));
            add(name, For::Size(size), Source::Vae, graph, state)?;
        }
    }
    Ok(stages)
}

/// The CPU computes in f32; weights keep their stored types and are widened where they are used. A GPU computes in
/// bf16, and TensorRT takes each weight as it is used, because it is supplied when the engine is loaded.
fn params(target: Target, weights: &dyn Weights) -> Params<'_> {
    match target {
        Target::Cpu => Params::new(weights, DType::F32),
        Target::Trt => Params::converted(weights, DType::Bf16),
    }
}

/// As [`params`]. TensorRT convolves f16 in three dimensions, but not bf16.
fn vae_params(target: Target, weights: &dyn Weights) -> Params<'_> {
    match target {
        Target::Cpu => params(target, weights),
        Target::Trt => params(target, weights).in_type(DType::F16),
    }
}

fn vae_decoder(
    plan: &Plan,
    weights: &dyn Weights,
    size: Size,
    first: bool,
) -> Result<vae::Stage, GraphError> {
    let params = vae_params(plan.target, weights);
    let stats = (&vae::LATENT_MEAN[..], &vae::LATENT_STD[..]);
    let [_, down, across] = VAE_STRIDE;
    vae::decoder(&plan.vae, params, stats, size.height / down, size.width / across, first)
}

fn vae_encoder(
    plan: &Plan,
    weights: &dyn Weights,
    size: Size,
    first: bool,
) -> Result<vae::Stage, GraphError> {
    let params = vae_params(plan.target, weights);
    let stats = (&vae::LATENT_MEAN[..], &vae::LATENT_STD[..]);
    vae::encoder(&plan.vae, params, stats, size.height, size.width, first)
}

fn split(stage: Result<vae::Stage, GraphError>) -> (Result<Graph, GraphError>, Vec<vae::State>) {
    match stage {
        Ok(stage) => (Ok(stage.graph), stage.state),
        Err(error) => (Err(error), vec![]),
    }
}

/// Names of the VAE weights that only image-to-video uses.
///
/// # Errors
/// As [`build`], of the encoder.
pub fn encoder_weights(plan: &Plan, vae: &dyn Weights) -> Result<BTreeSet<String>, (Source, GraphError)> {
    let mut names = BTreeSet::new();
    // Every size has the same weights.
    let Some(Video { size, .. }) = plan.videos.first() else { return Ok(names) };
    for first in [true, false] {
        let stage = vae_encoder(plan, vae, *size, first).map_err(|error| (Source::Vae, error))?;
        names.extend(weight_names(&stage.graph));
    }
    Ok(names)
}

/// Type and shape of a stored weight.
pub type WeightForm = (DType, Vec<usize>);

/// Forms of the stored weights as graphs have them.
///
/// # Errors
/// A weight that two graphs have in two forms, of which only one can be stored.
pub fn weight_forms<'g>(
    graphs: impl Iterator<Item = &'g Graph>,
) -> Result<BTreeMap<String, WeightForm>, CompileError> {
    let mut forms = BTreeMap::new();
    for graph in graphs {
        for initializer in graph.initializers() {
            let Payload::Weight(name) = &initializer.payload else { continue };
            let form = (graph.dtype(initializer.value), graph.shape(initializer.value).to_vec());
            let first = forms.entry(name.clone()).or_insert_with(|| form.clone());
            if *first != form {
                let what = format!("graphs take {name} as {first:?} and as {form:?}");
                return Err(CompileError::usage(what, "compile each size into an engine file of its own"));
            }
        }
    }
    Ok(forms)
}

/// Names of the stored weights that a graph uses.
pub fn weight_names(graph: &Graph) -> impl Iterator<Item = String> + '_ {
    graph.initializers().iter().filter_map(|i| match &i.payload {
        Payload::Weight(name) => Some(name.clone()),
        Payload::Inline(_) => None,
    })
}
