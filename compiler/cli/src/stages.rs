//! The stages of a plan as graphs.

use std::collections::{BTreeMap, BTreeSet};

use turbo_graph::{DType, Graph, GraphError, Payload};
use turbo_models::{Params, Weights, dit, umt5, vae};

use crate::choices::{Flavor, Target};
use crate::resolve::Plan;

/// One network with static shapes, ready to be written.
pub struct Stage {
    /// Name in the manifest.
    pub name: String,
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

/// Builds every stage that a video of this plan needs, in the order in which it first needs them.
///
/// # Errors
/// The network and what does not fit in it, down to the tensor.
pub fn build(plan: &Plan, networks: &Networks<'_>) -> Result<Vec<Stage>, (Source, GraphError)> {
    let mut stages = Vec::new();
    let mut add = |name: &str, weights: Source, graph: Result<Graph, GraphError>, state| {
        let graph = graph.and_then(|graph| match plan.flavor {
            Flavor::Custom => Ok(graph),
            Flavor::Standard => turbo_ops::schema::expand(&graph),
        });
        let graph = graph.map_err(|error| (weights, error))?;
        stages.push(Stage { name: name.to_string(), graph, weights, state });
        Ok::<(), (Source, GraphError)>(())
    };
    let params = |weights| params(plan.target, weights);

    let text = params(networks.text_encoder);
    let encoder = umt5::text_encoder(&plan.text_encoder, text, BATCH, plan.dit.text_len);
    add("text_encoder", Source::TextEncoder, encoder, vec![])?;
    if plan.dit.is_i2v() {
        for (name, first) in [("vae_encoder_first", true), ("vae_encoder", false)] {
            let (graph, state) = split(vae_encoder(plan, networks.vae, first));
            add(name, Source::Vae, graph, state)?;
        }
    }
    for (index, &weights) in networks.dits.iter().enumerate() {
        let name = expert_name(index, networks.dits.len());
        let source = Source::Dit(index);
        let context = dit::context(&plan.dit, &plan.recipe, params(weights), BATCH);
        add(&format!("{name}_context"), source, context, vec![])?;
        let denoiser = dit::denoiser(&plan.dit, &plan.recipe, params(weights), BATCH, plan.latent);
        add(name, source, denoiser, vec![])?;
    }
    for (name, first) in [("vae_decoder_first", true), ("vae_decoder", false)] {
        let (graph, state) = split(vae_decoder(plan, networks.vae, first));
        add(name, Source::Vae, graph, state)?;
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

fn vae_decoder(plan: &Plan, weights: &dyn Weights, first: bool) -> Result<vae::Stage, GraphError> {
    let params = vae_params(plan.target, weights);
    let stats = (&vae::LATENT_MEAN[..], &vae::LATENT_STD[..]);
    vae::decoder(&plan.vae, params, stats, plan.latent.height, plan.latent.width, first)
}

fn vae_encoder(plan: &Plan, weights: &dyn Weights, first: bool) -> Result<vae::Stage, GraphError> {
    let params = vae_params(plan.target, weights);
    let stats = (&vae::LATENT_MEAN[..], &vae::LATENT_STD[..]);
    vae::encoder(&plan.vae, params, stats, plan.size.height, plan.size.width, first)
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
    for first in [true, false] {
        let stage = vae_encoder(plan, vae, first).map_err(|error| (Source::Vae, error))?;
        names.extend(weight_names(&stage.graph));
    }
    Ok(names)
}

/// Type and shape of the stored weights as graphs have them.
pub fn weight_forms<'g>(graphs: impl Iterator<Item = &'g Graph>) -> BTreeMap<String, (DType, Vec<usize>)> {
    let forms = |graph: &'g Graph| {
        graph.initializers().iter().filter_map(|i| match &i.payload {
            Payload::Weight(name) => {
                Some((name.clone(), (graph.dtype(i.value), graph.shape(i.value).to_vec())))
            }
            Payload::Inline(_) => None,
        })
    };
    graphs.flat_map(forms).collect()
}

/// Names of the stored weights that a graph uses.
pub fn weight_names(graph: &Graph) -> impl Iterator<Item = String> + '_ {
    graph.initializers().iter().filter_map(|i| match &i.payload {
        Payload::Weight(name) => Some(name.clone()),
        Payload::Inline(_) => None,
    })
}
