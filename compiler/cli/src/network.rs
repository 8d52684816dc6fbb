//! A checkpoint recognised as one of the networks, its tensors under canonical names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use turbo_checkpoint::{Checkpoint, TensorView};
use turbo_graph::DType;
use turbo_models::{Weights, dit, umt5, vae};

use crate::CompileError;

/// The networks that a video needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The diffusion transformer, or one of two experts.
    Dit,
    /// The umT5 text encoder.
    TextEncoder,
    /// The Wan VAE.
    Vae,
}

impl Kind {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dit => "diffusion transformer",
            Kind::TextEncoder => "text encoder",
            Kind::Vae => "VAE",
        }
    }
}

/// An opened checkpoint and what it is.
pub struct Network {
    /// Which network.
    pub kind: Kind,
    /// The file or folder that was opened.
    pub path: PathBuf,
    checkpoint: Checkpoint,
    /// Canonical name to checkpoint name.
    names: BTreeMap<String, String>,
    /// Checkpoint tensors that carry nothing the network needs, such as a second copy under another prefix.
    pub ignored: Vec<String>,
}

/// Hint of every message about a file that is no known network.
const KNOWN: &str = "turbo-compile reads Wan 2.1 text-to-video and Wan 2.2 image-to-video transformers, umT5 \
                     encoders and the Wan 2.1 VAE, from safetensors or .pth files";

impl Network {
    /// Recognises a checkpoint by its tensors.
    ///
    /// # Errors
    /// Names that make no known network (a LoRA and other known strangers are named as such), and two tensors
    /// that stand for one.
    pub fn identify(path: &Path, checkpoint: Checkpoint) -> Result<Network, CompileError> {
        let all: BTreeSet<&str> = checkpoint.tensors().map(|t| t.name).collect();
        if let Some(name) = all.iter().find(|n| is_lora(n)) {
            let what = format!("this is a LoRA (it has {name}), not a model");
            let hint = "merge it into its base model first, then compile the merged checkpoint";
            return Err(CompileError::input(path, what, hint));
        }
        let mut names = BTreeMap::new();
        let mut ignored = Vec::new();
        let kind = if let Some((prefix, dialect)) = find_dit(&all) {
            for &name in &all {
                match name.strip_prefix(prefix) {
                    Some(rest) => insert(path, &mut names, dit::names::canonical(dialect, rest), name)?,
                    None if dit::names::PREFIXES.iter().any(|p| name.starts_with(p)) => {
                        ignored.push(name.to_string());
                    }
                    None => insert(path, &mut names, name.to_string(), name)?,
                }
            }
            Kind::Dit
        } else if let Some(dialect) = umt5::names::detect(&all) {
            canonicalise(path, &all, &mut names, &mut ignored, |n| umt5::names::canonical(dialect, n))?;
            Kind::TextEncoder
        } else if let Some(dialect) = vae::names::detect(&all) {
            canonicalise(path, &all, &mut names, &mut ignored, |n| vae::names::canonical(dialect, n))?;
            Kind::Vae
        } else {
            let first: Vec<&str> = all.iter().take(3).copied().collect();
            let what = format!("{} tensors ({}, ...) make no known network", all.len(), first.join(", "));
            return Err(CompileError::input(path, what, KNOWN));
        };
        ignored.extend(checkpoint.ignored().iter().cloned());
        Ok(Network { kind, path: path.to_path_buf(), checkpoint, names, ignored })
    }

    /// The checkpoint tensor behind a canonical name.
    pub fn tensor(&self, canonical: &str) -> Option<TensorView<'_>> {
        self.checkpoint.get(self.names.get(canonical)?)
    }

    /// Canonical names and the checkpoint's own.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().map(|(canonical, own)| (canonical.as_str(), own.as_str()))
    }

    /// Files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        self.checkpoint.files()
    }

    /// Tells the system that a tensor's pages are not needed again soon.
    pub fn release(&self, tensor: &TensorView<'_>) {
        self.checkpoint.release(tensor.name);
    }
}

impl Weights for Network {
    /// As the network sees it: a Conv3d patch embedding counts as the linear that it is.
    fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        let tensor = self.tensor(name)?;
        let dtype = graph_dtype(tensor.dtype)?;
        let shape = match (name, tensor.shape) {
            ("patch_embedding.weight", &[dim, ref kernel @ ..]) if kernel.len() > 1 => {
                vec![dim, kernel.iter().product()]
            }
            (_, shape) => shape.to_vec(),
        };
        Some((dtype, shape))
    }
}

/// The graph type of a stored element type, where graphs have it.
pub(crate) fn graph_dtype(dtype: turbo_checkpoint::DType) -> Option<DType> {
    use turbo_checkpoint::DType as Stored;
    Some(match dtype {
        // Narrowed to f32 when it is written.
        Stored::F64 | Stored::F32 => DType::F32,
        Stored::F16 => DType::F16,
        Stored::Bf16 => DType::Bf16,
        Stored::I64 => DType::I64,
        Stored::I32 => DType::I32,
        Stored::I8 => DType::I8,
        Stored::U8 => DType::U8,
        Stored::Bool => DType::Bool,
        Stored::F8E4M3 | Stored::F8E5M2 | Stored::I16 => return None,
    })
}

fn is_lora(name: &str) -> bool {
    [".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", ".diff_b", ".diff_m", "lora_unet_"]
        .iter()
        .any(|mark| name.contains(mark))
        || name.ends_with(".diff")
}

fn find_dit<'a>(all: &BTreeSet<&str>) -> Option<(&'a str, dit::names::Dialect)> {
    dit::names::PREFIXES.iter().copied().chain([""]).find_map(|prefix| {
        let has = |name: &str| all.contains(format!("{prefix}{name}").as_str());
        Some((prefix, dit::names::detect(has)?))
    })
}

fn canonicalise(
    path: &Path,
    all: &BTreeSet<&str>,
    names: &mut BTreeMap<String, String>,
    ignored: &mut Vec<String>,
    canonical: impl Fn(&str) -> Option<String>,
) -> Result<(), CompileError> {
    for &name in all {
        match canonical(name) {
            Some(canonical) => insert(path, names, canonical, name)?,
            None => ignored.push(name.to_string()),
        }
    }
    Ok(())
}

fn insert(
    path: &Path,
    names: &mut BTreeMap<String, String>,
    canonical: String,
    own: &str,
) -> Result<(), CompileError> {
    if let Some(other) = names.insert(canonical.clone(), own.to_string()) {
        let what = format!("{other} and {own} are both {canonical}");
        return Err(CompileError::input(path, what, "keep one of the two tensors"));
    }
    Ok(())
}
