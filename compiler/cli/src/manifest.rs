//! The manifest of a compiled plan.

use turbo_engine_file as file;
use turbo_graph::{DType, Graph, Value};
use turbo_models::dit::{Attention, Linear, PvType, keep_blocks};
use turbo_models::vae;

use crate::CompileError;
use crate::choices::{Choices, Sampler, Target};
use crate::compile::{Prepared, Progress};
use crate::inputs::Inputs;
use crate::resolve::{Plan, VAE_STRIDE, Video};
use crate::stages::{Source, Stage, expert_name, step_names};

/// Entry of the tokenizer.
pub(crate) const TOKENIZER_ENTRY: &str = "tokenizer.json";

/// Oldest ONNX Runtime that has every operator the graphs use and the API the runtime speaks.
const MIN_ONNXRUNTIME: &str = "1.23";

/// Entry of a stage's graph or plan. A graph lies beside the folder of weights, as ONNX external data asks.
pub(crate) fn graph_entry(stage: &Stage, target: Target) -> String {
    match target {
        Target::Cpu => format!("{}.onnx", stage.file),
        Target::Trt => format!("{}.plan", stage.file),
    }
}

/// Names, sizes and digests of the files that were read.
pub(crate) fn sources(inputs: &Inputs, progress: &dyn Progress) -> Result<Vec<file::Source>, CompileError> {
    let mut list = Vec::new();
    let tokenizer = std::slice::from_ref(&inputs.tokenizer);
    for path in inputs.networks().flat_map(|network| network.files()).chain(tokenizer) {
        if progress.cancelled() {
            return Err(CompileError::Interrupted);
        }
        list.push(file::Source::of_file(path)?);
    }
    Ok(list)
}

/// Everything that the runtime has to know, but for the sources' digests and what building engines tells.
pub(crate) fn build(
    prepared: &Prepared<'_>,
    choices: &Choices,
    tokenizer: &[u8],
) -> Result<file::Manifest, CompileError> {
    let plan = &prepared.plan;
    let experts = 1 + usize::from(plan.boundary.is_some());
    let expert = |index: usize| file::Expert {
        context: format!("{}_context", expert_name(index, experts)),
        steps: step_names(expert_name(index, experts), plan.parts),
    };
    let parameters = prepared.weights.get(&Source::Dit(0)).map_or(0, |(stored, _)| stored.parameters());
    Ok(file::Manifest {
        schema: file::SCHEMA,
        created_by: file::Program {
            name: env!("CARGO_PKG_NAME").to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        },
        backend: file::Backend {
            kind: file::BackendKind::OnnxRuntimeCpu,
            min_version: MIN_ONNXRUNTIME.to_string(),
            gpu: None,
        },
        ops: ops(&prepared.stages),
        recipe: recipe(plan),
        model: file::Model {
            family: match plan.dit.is_i2v() {
                true => file::Family::Wan22I2v,
                false => file::Family::Wan21T2v,
            },
            dim: number(plan.dit.dim),
            heads: number(plan.dit.heads),
            layers: number(plan.dit.layers),
            ffn_dim: number(plan.dit.ffn_dim),
            in_channels: number(plan.dit.in_dim),
            out_channels: number(plan.dit.out_dim),
            text_dim: number(plan.dit.text_dim),
            text_len: number(plan.dit.text_len),
            parameters,
        },
        videos: plan.videos.iter().map(|one| video(plan, one)).collect(),
        sampling: file::Sampling {
            steps: plan.steps,
            sigma_max: plan.sigma_max,
            sampler: match plan.sampler {
                Sampler::Sde => file::Sampler::Sde,
                Sampler::Ode => file::Sampler::Ode,
            },
            boundary: plan.boundary,
        },
        tokenizer: file::Tokenizer { entry: TOKENIZER_ENTRY.to_string(), pad_id: pad_id(plan, tokenizer)? },
        stages: prepared.stages.iter().flat_map(|stage| describe(prepared, stage)).collect(),
        experts: file::Experts { high: expert(0), low: (experts == 2).then(|| expert(1)) },
        entries: Vec::new(),
        sources: Vec::new(),
        licence: choices.licence.clone(),
    })
}

fn pad_id(plan: &Plan, tokenizer: &[u8]) -> Result<u32, CompileError> {
    let tokenizer = turbo_text::Tokenizer::from_bytes(tokenizer, plan.dit.text_len).map_err(|e| {
        CompileError::usage(e.to_string(), "give the tokenizer.json of umT5 with --tokenizer")
    })?;
    let pad = u32::try_from(tokenizer.pad_id());
    pad.map_err(|_| CompileError::usage("the tokenizer's <pad> has no id", "give the tokenizer.json of umT5"))
}

fn ops(stages: &[Stage]) -> Vec<file::Op> {
    let used = |op: &&&turbo_ops::Op| {
        stages
            .iter()
            .any(|s| s.graph.nodes().iter().any(|n| n.domain == turbo_ops::DOMAIN && n.op == op.name))
    };
    let op = |op: &&turbo_ops::Op| file::Op { name: op.name.to_string(), version: op.version.to_string() };
    turbo_ops::ALL.iter().filter(used).map(op).collect()
}

fn video(plan: &Plan, video: &Video) -> file::Video {
    let (latent, recipe) = (video.latent, &plan.recipe);
    let sparse = matches!(recipe.attention, Attention::Sla | Attention::SageSla);
    let keep_blocks = || number(keep_blocks(recipe.topk, latent.tokens(), recipe.tiling.block_k));
    file::Video {
        width: number(video.size.width),
        height: number(video.size.height),
        frames: number(video.frames),
        fps: plan.fps,
        vae_stride: VAE_STRIDE.map(number),
        latent: [plan.dit.out_dim, latent.frames, latent.height, latent.width].map(number),
        tokens: latent.tokens() as u64,
        keep_blocks: sparse.then(keep_blocks),
        latent_mean: vae::LATENT_MEAN.to_vec(),
        latent_std: vae::LATENT_STD.to_vec(),
    }
}

fn recipe(plan: &Plan) -> file::Recipe {
    let recipe = &plan.recipe;
    let (block_q, block_k) = (number(recipe.tiling.block_q), number(recipe.tiling.block_k));
    let topk = recipe.topk;
    let pv = match recipe.pv {
        PvType::Fp8 => file::PvPrecision::Fp8,
        PvType::F16 => file::PvPrecision::F16,
    };
    file::Recipe {
        attention: match recipe.attention {
            Attention::Dense => file::Attention::Dense {},
            Attention::Sage => file::Attention::Sage { block_q, block_k, pv },
            Attention::Sla => file::Attention::Sla { topk, block_q, block_k },
            Attention::SageSla => file::Attention::SageSla { topk, block_q, block_k, pv },
        },
        linear: match recipe.linear {
            Linear::Bf16 => file::Linear::Bf16,
            Linear::W8a8 => file::Linear::W8a8,
            Linear::Fp8 => file::Linear::Fp8,
        },
    }
}

/// What the manifest says of a stage: once if it serves every video, else once for each that it serves.
fn describe(prepared: &Prepared<'_>, stage: &Stage) -> Vec<file::Stage> {
    let described = describe_for_all(prepared, stage);
    if stage.videos.len() == prepared.plan.videos.len() {
        return vec![described];
    }
    let only = |&video: &usize| file::Stage { video: Some(number(video)), ..described.clone() };
    stage.videos.iter().map(only).collect()
}

fn describe_for_all(prepared: &Prepared<'_>, stage: &Stage) -> file::Stage {
    let graph = &stage.graph;
    let ports = |values: &[Value], prefix: &str| {
        let own = |v: &&Value| !graph.value_name(**v).starts_with(prefix);
        values.iter().filter(own).map(|&v| tensor(graph, v)).collect()
    };
    file::Stage {
        name: stage.name.clone(),
        video: None,
        graph: graph_entry(stage, prepared.plan.target),
        weights: vec![prepared.entry(stage)],
        inputs: ports(graph.inputs(), "state."),
        outputs: ports(graph.outputs(), "next."),
        state: (stage.state.iter())
            .filter(|state| graph.find(&format!("next.{}", state.name)).is_some())
            .map(|state| file::State {
                name: state.name.clone(),
                input: format!("state.{}", state.name),
                output: format!("next.{}", state.name),
                dtype: (graph.find(&format!("next.{}", state.name)))
                    .map_or(file::DType::F32, |value| dtype(graph.dtype(value))),
                shape: state.shape.iter().map(|&d| d as u64).collect(),
            })
            .collect(),
        peak_memory_bytes: None,
        activation_bytes: None,
    }
}

fn tensor(graph: &Graph, value: Value) -> file::Tensor {
    file::Tensor {
        name: graph.value_name(value).to_string(),
        dtype: dtype(graph.dtype(value)),
        shape: graph.shape(value).iter().map(|&d| d as u64).collect(),
    }
}

fn dtype(dtype: DType) -> file::DType {
    match dtype {
        DType::F32 => file::DType::F32,
        DType::F16 => file::DType::F16,
        DType::Bf16 => file::DType::Bf16,
        DType::I64 => file::DType::I64,
        DType::I32 => file::DType::I32,
        DType::I8 => file::DType::I8,
        DType::U8 | DType::F8E4M3 => file::DType::U8,
        DType::Bool => file::DType::Bool,
    }
}

/// Sizes were checked against the position table and the tensors' own sizes; all fit 32 bits.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
