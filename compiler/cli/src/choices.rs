//! Every choice of a compile: command-line flags and the recipe file, which hold the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueHint;
use serde::{Deserialize, Serialize};
use turbo_models::dit::{Attention, Linear, PvType, Tiling};

use crate::{CompileError, one_or_many};

/// What the user chose; what is left out is read from the model or has a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Choices {
    /// Model: a folder that holds transformer, text encoder, VAE and tokenizer, or the transformer's file
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,

    /// High-noise expert of a two-expert model (found in the folder's paths otherwise)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_noise: Option<PathBuf>,
    /// Low-noise expert of a two-expert model
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_noise: Option<PathBuf>,
    /// umT5 text encoder: a file, a sharded index or a folder
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<PathBuf>,
    /// Wan 2.1 VAE: a file or a folder
    #[arg(long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// tokenizer.json
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Licence of the weights, kept in the engine file: an SPDX expression or text
    #[arg(long, value_name = "TEXT", help_heading = "Model")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,

    /// Where the engine file runs: cpu (ONNX Runtime) or trt (TensorRT, built on this machine's GPU) [default: cpu]
    #[arg(long, value_name = "KIND", value_parser = word::<Target>, help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// TensorRT: its folder, or libnvinfer itself [default: TENSORRT_ROOT, then the loader's path]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<PathBuf>,
    /// Folder of libturbo_trt and libturbo_plugins [default: beside this program, then target/gpu/lib]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_libraries: Option<PathBuf>,
    /// How long TensorRT looks for fast kernels of its own layers, 0 (short) to 5 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5), help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<u8>,
    /// Plans that each transformer is split into: building a plan takes several times its weights in memory [default:
    /// as many as keep each under 4 GiB of weights; 1 on the CPU]
    #[arg(long, value_name = "N", help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<usize>,
    /// Folder of finished plans and measured kernels, from which a build goes on [default: the user's cache folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Target")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_cache: Option<PathBuf>,

    /// Self-attention: dense, sage, sla or sagesla [default: sagesla with proj_l weights, dense without]
    #[arg(long, value_name = "KIND", value_parser = word::<Attention>, help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<Attention>,
    /// Share of key blocks that sparse attention keeps, in (0, 1] [default: config.json's, or 0.1]
    #[arg(long, value_name = "RATIO", help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topk: Option<f64>,
    /// Query and key block sizes: 128x64 or 64x128 [default: config.json's, or what TurboDiffusion
    /// takes: 64x128 for a Hopper GPU, 128x64 elsewhere]
    #[arg(long, value_name = "QxK", value_parser = parse_tiling, help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
    /// Probabilities and values of SageAttention: fp8 or f16 [default: fp8]
    #[arg(long, value_name = "TYPE", value_parser = word::<PvType>, help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pv: Option<PvType>,
    /// Linears inside the blocks: w8a8 (INT8), fp8 (E4M3) or bf16 [default: w8a8]
    #[arg(long, value_name = "TYPE", value_parser = word::<Linear>, help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<Linear>,
    /// Custom ops as nodes of their own, or written out in standard ONNX operators: custom or standard
    #[arg(long, value_name = "KIND", value_parser = word::<Flavor>, help_heading = "Recipe")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flavor: Option<Flavor>,

    /// Video sizes in pixels, the first the default [default: config.json's, or 832x480 (text) and 1280x720 (image)]
    #[arg(long, value_name = "WxH,...", value_delimiter = ',', help_heading = "Video")]
    #[serde(skip_serializing_if = "Vec::is_empty", with = "one_or_many")]
    pub size: Vec<Size>,
    /// Numbers of frames at each size, 1 plus a multiple of 4, the first the default [default: config.json's, or 81]
    #[arg(long, value_name = "N,...", value_delimiter = ',', help_heading = "Video")]
    #[serde(skip_serializing_if = "Vec::is_empty", with = "one_or_many")]
    pub frames: Vec<usize>,
    /// Frames per second [default: config.json's, or 16]
    #[arg(long, value_name = "N", help_heading = "Video")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<u32>,

    /// Default number of steps, 1 to 4 [default: config.json's, or 4]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Default sampler: sde or ode [default: config.json's, or sde]
    #[arg(long, value_name = "KIND", value_parser = word::<Sampler>, help_heading = "Sampling")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// Noise level at which sampling starts [default: config.json's, or 80 (text) and 200 (image)]
    #[arg(long, value_name = "SIGMA", help_heading = "Sampling")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Time below which the low-noise expert takes over [default: 0.9]
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary: Option<f64>,

    /// Engine file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// Also write the ONNX files and their weights into this folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emit_onnx: Option<PathBuf>,
}

/// What executes an engine file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// ONNX Runtime on any CPU, in f32.
    Cpu,
    /// TensorRT on GPUs like this machine's, in bf16.
    Trt,
}

/// Whether graphs use custom ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavor {
    /// Custom ops, for turbo-run.
    Custom,
    /// Standard ONNX operators only, for any ONNX Runtime.
    Standard,
}

/// What happens between two sampling steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Fresh noise is mixed in.
    Sde,
    /// The velocity is followed.
    Ode,
}

/// Width and height in pixels, written `832x480`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size {
    /// Pixels per row.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (width, height) = pair(s).ok_or_else(|| format!("`{s}` is not a size; write it as 832x480"))?;
        Ok(Size { width, height })
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

fn pair(s: &str) -> Option<(usize, usize)> {
    let (a, b) = s.split_once(['x', 'X'])?;
    Some((a.trim().parse().ok()?, b.trim().parse().ok()?))
}

fn parse_tiling(s: &str) -> Result<Tiling, String> {
    match pair(s) {
        Some((block_q, block_k)) if matches!((block_q, block_k), (128, 64) | (64, 128)) => {
            Ok(Tiling { block_q, block_k })
        }
        _ => Err(format!("`{s}` is not a tiling; write 128x64 or 64x128")),
    }
}

/// A word of an enum, spelled as in the recipe file; serde's message lists the words there are.
fn word<T: serde::de::DeserializeOwned>(s: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(s.to_lowercase())).map_err(|e| e.to_string())
}

impl Choices {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a recipe; the message says where.
    pub fn read(path: &Path) -> Result<Choices, CompileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| CompileError::input(path, e.to_string(), "check the path given to --recipe"))?;
        serde_saphyr::from_str(&text)
            .map_err(|e| CompileError::input(path, e.to_string(), "--save-recipe writes one to start from"))
    }

    /// The recipe file of these choices.
    ///
    /// # Errors
    /// A choice that YAML cannot hold, such as a path that is not Unicode.
    pub fn to_yaml(&self) -> Result<String, CompileError> {
        serde_saphyr::to_string(self)
            .map_err(|e| CompileError::usage(e.to_string(), "use paths made of ordinary characters"))
    }

    /// These choices, and those of `base` where these are silent.
    pub fn over(self, base: Choices) -> Choices {
        Choices {
            model: self.model.or(base.model),
            high_noise: self.high_noise.or(base.high_noise),
            low_noise: self.low_noise.or(base.low_noise),
            text_encoder: self.text_encoder.or(base.text_encoder),
            vae: self.vae.or(base.vae),
            tokenizer: self.tokenizer.or(base.tokenizer),
            licence: self.licence.or(base.licence),
            target: self.target.or(base.target),
            tensorrt: self.tensorrt.or(base.tensorrt),
            gpu_libraries: self.gpu_libraries.or(base.gpu_libraries),
            effort: self.effort.or(base.effort),
            parts: self.parts.or(base.parts),
            build_cache: self.build_cache.or(base.build_cache),
            attention: self.attention.or(base.attention),
            topk: self.topk.or(base.topk),
            tiling: self.tiling.or(base.tiling),
            pv: self.pv.or(base.pv),
            linear: self.linear.or(base.linear),
            flavor: self.flavor.or(base.flavor),
            size: if self.size.is_empty() { base.size } else { self.size },
            frames: if self.frames.is_empty() { base.frames } else { self.frames },
            fps: self.fps.or(base.fps),
            steps: self.steps.or(base.steps),
            sampler: self.sampler.or(base.sampler),
            sigma_max: self.sigma_max.or(base.sigma_max),
            boundary: self.boundary.or(base.boundary),
            output: self.output.or(base.output),
            emit_onnx: self.emit_onnx.or(base.emit_onnx),
        }
    }
}
