//! The vectors from the reference code, and the networks that turbo-compile emits run against them.
//!
//! `TURBO_GOLDEN` and `TURBO_GOLDEN_GPU` name folders with the full sets; without them a small subset under
//! `tests/golden` is used, and what is not in it is skipped with a printed line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use turbo_checkpoint::Checkpoint;
use turbo_pipeline::backend::{self, Runtime, Tensor};

pub use crate::family::{Case, Family};

/// Names of the vectors from the reference's own GPU kernels start with this.
const GPU: &str = "gpu/";

/// Where [`use_folder`] said that the vectors are.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Looks for all vectors in this folder, for those from the reference's GPU kernels in its subfolder `gpu`; what is not
/// there is skipped. The first call counts.
pub fn use_folder(folder: &Path) {
    FOLDER.get_or_init(|| folder.to_path_buf());
}

/// A golden file that is not there.
#[derive(Debug)]
pub struct Missing {
    /// Where it was looked for.
    pub path: PathBuf,
    /// Whether a variable names the folder, which should then be complete.
    pub named: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing", self.path.display())
    }
}

impl std::error::Error for Missing {}

/// Path of a golden file, such as `vae.safetensors` or `gpu/dit.safetensors`.
///
/// # Errors
/// It is not there.
pub fn find(name: &str) -> Result<PathBuf, Missing> {
    let variable = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
    let subset = || Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let (path, named) = match (FOLDER.get(), name.strip_prefix(GPU)) {
        (Some(folder), _) => (folder.join(name), false),
        (None, Some(rest)) => match variable("TURBO_GOLDEN_GPU") {
            Some(folder) => (Path::new(&folder).join(rest), true),
            None => (subset(), false),
        },
        (None, None) => match variable("TURBO_GOLDEN") {
            Some(folder) => (Path::new(&folder).join(name), true),
            None => (subset(), false),
        },
    };
    if path.exists() { Ok(path) } else { Err(Missing { path, named }) }
}

/// Path of a golden file; `None` where it is not in the small subset.
///
/// # Panics
/// When the folder was named and the file is not there.
pub fn file(name: &str) -> Option<PathBuf> {
    match find(name) {
        Ok(path) => Some(path),
        Err(missing) => {
            assert!(!missing.named, "{missing}");
            println!("skipped: {name} is not in the small subset");
            None
        }
    }
}

/// The tensors of a golden file.
pub struct Vectors(pub Checkpoint);

impl Vectors {
    /// Finds and opens a golden file.
    ///
    /// # Errors
    /// It is not there, or is no safetensors file.
    pub fn find(name: &str) -> Result<Vectors> {
        Ok(Vectors(Checkpoint::open(&find(name)?)?))
    }

    /// A float tensor.
    ///
    /// # Errors
    /// None of that name and kind.
    pub fn f32(&self, name: &str) -> Result<Tensor> {
        let view = self.0.get(name).with_context(|| format!("no tensor {name}"))?;
        let values = view.to_f32().with_context(|| format!("{name} is no float tensor"))?;
        Ok(Tensor::f32(view.shape.to_vec(), values))
    }

    /// The elements of a float tensor.
    ///
    /// # Errors
    /// As [`Vectors::f32`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.f32(name)?.as_f32().to_vec())
    }

    /// Shape and elements of an integer tensor of any width.
    ///
    /// # Errors
    /// None of that name.
    pub fn i64(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let view = self.0.get(name).with_context(|| format!("no tensor {name}"))?;
        let bytes = view.bytes();
        let values = match view.dtype {
            turbo_checkpoint::DType::I64 => {
                bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
            }
            turbo_checkpoint::DType::I32 => {
                bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect()
            }
            turbo_checkpoint::DType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            _ => bytes.iter().map(|&b| i64::from(b)).collect(),
        };
        Ok((view.shape.to_vec(), values))
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.0.tensors().map(|t| t.name.to_string()).collect()
    }

    /// A number in the file's header.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.0.metadata().get(key)?.parse().ok()
    }
}

/// ONNX Runtime; `None` where it is not there and need not be.
pub fn runtime() -> Option<Runtime> {
    match backend::init(None, None) {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            assert!(std::env::var_os("TURBO_REQUIRE_ORT").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}
