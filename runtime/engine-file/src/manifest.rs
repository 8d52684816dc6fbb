//! The manifest, schema 2: all that `turbo-run` needs to know about an engine file.
//!
//! The JSON schema in `manifest.schema.json` is generated from these types and their documentation.
//! Any change of meaning, new field included, is a new schema number: unknown fields are errors, so that an
//! older `turbo-run` never half-understands a newer file.

use serde::{Deserialize, Serialize};

/// What an engine file is, what it needs, and how to run it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Number of this schema: 2.
    pub schema: u32,
    /// The program that wrote the file.
    pub created_by: Program,
    /// What executes the stages.
    pub backend: Backend,
    /// The custom ops that the graphs use; empty where they use standard ONNX ops only.
    pub ops: Vec<Op>,
    /// Attention and precision choices of the compile.
    pub recipe: Recipe,
    /// The diffusion transformer.
    pub model: Model,
    /// The videos that can be made, at least one. The first is made where the user asks for none.
    pub videos: Vec<Video>,
    /// The sampler's defaults.
    pub sampling: Sampling,
    /// How prompts become token ids.
    pub tokenizer: Tokenizer,
    /// The networks, in the order in which a video first needs them.
    pub stages: Vec<Stage>,
    /// Which stages are the diffusion transformer.
    pub experts: Experts,
    /// Every entry of the file except the manifest itself, in file order.
    pub entries: Vec<Entry>,
    /// The files that the engine file was compiled from.
    pub sources: Vec<Source>,
    /// Licence of the weights, as the user gave it: an SPDX expression or text. Absent where none was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

/// Name and version of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Such as `turbo-compile`.
    pub name: String,
    /// Such as `0.1.0`.
    pub version: String,
}

/// What executes the stages, and how new it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Which backend.
    pub kind: BackendKind,
    /// Oldest version that will do, as `MAJOR.MINOR`; newer minor versions will do as well.
    pub min_version: String,
    /// The GPU that the plans were built for; present with TensorRT only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// What a TensorRT plan is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Name of the GPU on which the plans were built, such as `NVIDIA H200`.
    pub name: String,
    /// Its compute capability, major and minor: plans run on this one only.
    pub compute_capability: [u32; 2],
    /// The version of TensorRT that built the plans, `MAJOR.MINOR.PATCH`: plans run with this one only.
    pub tensorrt: String,
    /// The CUDA version, `MAJOR.MINOR`, that the driver must support.
    pub cuda: String,
}

/// The backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum BackendKind {
    /// ONNX Runtime on the CPU; the graphs are ONNX models.
    #[serde(rename = "onnxruntime-cpu")]
    OnnxRuntimeCpu,
    /// TensorRT on an NVIDIA GPU; the graphs are plans without their weights.
    #[serde(rename = "tensorrt")]
    TensorRt,
}

/// A custom op that the graphs use. An op's version changes whenever its meaning, inputs or attributes do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Op {
    /// The ONNX op type.
    pub name: String,
    /// Exactly this version is needed.
    pub version: String,
}

/// Attention and precision choices of the compile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Self-attention of the diffusion transformer.
    pub attention: Attention,
    /// Linear layers inside its blocks.
    pub linear: Linear,
}

/// Self-attention of the diffusion transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Attention {
    /// Every query attends to every key.
    Dense {},
    /// Every query attends to every key, with INT8 queries and keys (SageAttention).
    Sage {
        /// Tokens per query block.
        block_q: u32,
        /// Tokens per key block.
        block_k: u32,
        /// Precision of the product of probabilities and values.
        pv: PvPrecision,
    },
    /// Sparse-linear attention: each query block attends to its best key blocks, a linear branch to all keys.
    Sla {
        /// Share of the key blocks that is kept, in (0, 1].
        topk: f64,
        /// Tokens per query block.
        block_q: u32,
        /// Tokens per key block.
        block_k: u32,
    },
    /// Sparse-linear attention with INT8 queries and keys (SageAttention).
    SageSla {
        /// Share of the key blocks that is kept, in (0, 1].
        topk: f64,
        /// Tokens per query block.
        block_q: u32,
        /// Tokens per key block.
        block_k: u32,
        /// Precision of the product of probabilities and values.
        pv: PvPrecision,
    },
}

/// Precision of the product of probabilities and values in SageAttention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PvPrecision {
    /// FP8, E4M3.
    Fp8,
    /// F16.
    F16,
}

/// Linear layers inside the blocks of the diffusion transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Linear {
    /// Weights in bf16.
    Bf16,
    /// Weights and activations in INT8 with one scale per 128 x 128 block.
    W8a8,
    /// Weights and activations in FP8, E4M3, with one scale per 128 x 128 block.
    Fp8,
}

/// The diffusion transformer. With two experts, both have this shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Which family, and so whether it starts from text or from an image.
    pub family: Family,
    /// Width of the residual stream.
    pub dim: u32,
    /// Attention heads; they divide `dim`.
    pub heads: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Width of the feed-forward layers.
    pub ffn_dim: u32,
    /// Channels of its input: the latent's, and for image-to-video those of the condition.
    pub in_channels: u32,
    /// Channels of its output: the latent's.
    pub out_channels: u32,
    /// Width of the text embeddings.
    pub text_dim: u32,
    /// Text tokens that it attends to: prompts are padded and cut to this length.
    pub text_len: u32,
    /// Parameters of one expert.
    pub parameters: u64,
}

/// Model families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Family {
    /// Wan 2.1 text-to-video: one network.
    #[serde(rename = "wan2.1-t2v")]
    Wan21T2v,
    /// Wan 2.2 image-to-video: a high-noise and a low-noise expert.
    #[serde(rename = "wan2.2-i2v")]
    Wan22I2v,
}

/// Size of a video and of its latents. No two have the same width, height and frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Video {
    /// Pixels per row.
    pub width: u32,
    /// Rows of pixels.
    pub height: u32,
    /// Frames: 1 plus a multiple of the VAE's stride in time.
    pub frames: u32,
    /// Frames per second at which it plays.
    pub fps: u32,
    /// Pixels per latent: time, height, width.
    pub vae_stride: [u32; 3],
    /// Shape of the latent: channels, time, height, width.
    pub latent: [u32; 4],
    /// Tokens of the diffusion transformer: patches of 1 x 2 x 2 latents.
    pub tokens: u64,
    /// Key blocks that each query block keeps. Present with sparse attention only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_blocks: Option<u32>,
    /// Per latent channel: the mean that the networks' latents have had subtracted.
    pub latent_mean: Vec<f32>,
    /// Per latent channel: the standard deviation that they have then been divided by.
    pub latent_std: Vec<f32>,
}

/// The sampler's defaults (rCM).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Steps where the user gives none: 1 to 4.
    pub steps: u32,
    /// Noise level at which sampling starts.
    pub sigma_max: f64,
    /// What happens between two steps.
    pub sampler: Sampler,
    /// The low-noise expert takes over at the first time below this, in (0, 1). Present with two experts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<f64>,
}

/// What happens between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Fresh noise is mixed in.
    Sde,
    /// The velocity is followed.
    Ode,
}

/// How prompts become token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// Entry with the tokenizer in the format of the Hugging Face `tokenizers` library.
    pub entry: String,
    /// Id that fills the prompt up to `model.text_len`.
    pub pad_id: u32,
}

/// One network with static shapes.
///
/// Names in use: `text_encoder`, `dit` or `dit_high` and `dit_low`, the same with `_context`, `vae_encoder` and
/// `vae_decoder`, with `_first` for the first chunk of a streaming VAE. Only `experts` gives stage names a meaning
/// to the reader of the manifest; what else a backend runs it asks for by name. A name may be that of several stages,
/// each made for another video.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name, unique among the stages that serve one video.
    pub name: String,
    /// Index into `videos` of the only video that the stage serves. Absent where it serves every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<u32>,
    /// Entry with the network; stages of the same shapes may share it.
    pub graph: String,
    /// Entries with its weights, safetensors files. An ONNX graph takes each weight as an input of its name; a plan
    /// is completed with those that it names.
    pub weights: Vec<String>,
    /// What the caller feeds, state aside.
    pub inputs: Vec<Tensor>,
    /// What the caller gets, state aside.
    pub outputs: Vec<Tensor>,
    /// What a streaming stage carries from run to run; empty for the others.
    pub state: Vec<State>,
    /// Most memory that one run of the stage needs, weights included, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// GPU memory for what a run computes on the way; stages that do not run at the same time share it. Present with
    /// TensorRT only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_bytes: Option<u64>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Its name in the graph.
    pub name: String,
    /// Type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Vec<u64>,
}

/// A tensor that a streaming stage carries from run to run. It is zero before the first run of a video.
///
/// Stages that give a state the same name share it: a first-chunk stage hands over to the one for the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Name, unique in the stage.
    pub name: String,
    /// Graph input that receives the state.
    pub input: String,
    /// Graph output that gives the next one.
    pub output: String,
    /// Type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
}

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// The upper half of single precision.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// A truth value in one byte.
    Bool,
}

/// Which stages are the diffusion transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// The expert for high noise, or the only one.
    pub high: Expert,
    /// The expert for low noise, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<Expert>,
}

/// The stages of one expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Expert {
    /// Stage that runs once per prompt, before the first step: what the text and the times of all steps give.
    pub context: String,
    /// Stages that run at each step, one after the other. An input `from.NAME` of a stage takes the output `to.NAME` of
    /// the latest stage before it that has one; all other inputs come from the caller.
    pub steps: Vec<String>,
}

/// One entry of the engine file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path inside the file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A file that the engine file was compiled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name, without folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its whole content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Backend {
    /// Whether version `found`, such as `1.22.1`, is `min_version` or a newer minor version of the same major one.
    pub fn accepts(&self, found: &str) -> bool {
        match (major_minor(&self.min_version), major_minor(found)) {
            (Some(min), Some(found)) => found.0 == min.0 && found.1 >= min.1,
            _ => false,
        }
    }
}

/// The first two numbers of a version.
pub(crate) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let mut number = || parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    Some((number()?, number()?))
}

impl DType {
    /// Bytes per element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }
}

impl Attention {
    /// Tokens per key block, where only the best of these are kept.
    pub fn sparse_block_k(&self) -> Option<u32> {
        match *self {
            Attention::Dense {} | Attention::Sage { .. } => None,
            Attention::Sla { block_k, .. } | Attention::SageSla { block_k, .. } => Some(block_k),
        }
    }
}

impl Stage {
    /// Whether it is made for the video of that index.
    pub fn serves(&self, video: usize) -> bool {
        self.video.is_none_or(|only| only as usize == video)
    }
}

impl Manifest {
    /// The stage of that name for the video of that index.
    pub fn stage(&self, name: &str, video: usize) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name && stage.serves(video))
    }

    /// The first video of that size, width before height, and number of frames; each may be left open. Its index comes
    /// with it.
    pub fn find_video(&self, size: Option<(u32, u32)>, frames: Option<u32>) -> Option<(usize, &Video)> {
        let fits = |video: &Video| {
            size.is_none_or(|size| size == (video.width, video.height))
                && frames.is_none_or(|frames| frames == video.frames)
        };
        self.videos.iter().enumerate().find(|(_, video)| fits(video))
    }

    /// The expert for high noise, or for low noise where there is one.
    pub fn expert(&self, low: bool) -> &Expert {
        self.experts.low.as_ref().filter(|_| low).unwrap_or(&self.experts.high)
    }

    /// The entry at that path.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }
}
