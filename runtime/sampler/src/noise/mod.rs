//! Where the noise comes from.

mod file;
mod philox;
mod portable;
mod torch_cuda;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use file::FileNoise;
pub use portable::Portable;
pub use torch_cuda::{CudaGeometry, TorchCuda};

use crate::Error;

/// A stream of standard normal tensors.
pub trait NoiseSource: Send {
    /// The next tensor of `n` elements: first the initial noise, then one for every SDE step, the last included.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`]; for a file also when it lacks the tensor or the tensor does not fit.
    fn draw(&mut self, n: usize) -> Result<Vec<f32>, Error>;
}

/// The choice of a noise source; as text: `portable`, `torch-cuda`, `torch-cuda:rtx-5090`, `torch-cuda:170x1536`,
/// `file:noise.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoiseKind {
    /// [`Portable`]: a seed means the same on every machine.
    #[default]
    Portable,
    /// [`TorchCuda`]: what torch draws on a GPU of this size.
    TorchCuda(CudaGeometry),
    /// [`FileNoise`]: tensors of a safetensors file; the seed means nothing.
    File(PathBuf),
}

impl NoiseKind {
    /// The source for `seed`, before its first draw. Only [`NoiseKind::File`] reads anything.
    ///
    /// # Errors
    ///
    /// Those of [`FileNoise::open`].
    pub fn source(&self, seed: u64) -> Result<Box<dyn NoiseSource>, Error> {
        Ok(match self {
            Self::Portable => Box::new(Portable::new(seed)),
            Self::TorchCuda(geometry) => Box::new(TorchCuda::new(seed, *geometry)),
            Self::File(path) => Box::new(FileNoise::open(path)?),
        })
    }
}

impl FromStr for NoiseKind {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Spec { spec: spec.to_owned(), reason };
        match spec.split_once(':') {
            None if spec == "portable" => Ok(Self::Portable),
            None if spec == "torch-cuda" => Ok(Self::TorchCuda(CudaGeometry::default())),
            Some(("file", "")) => Err(wrong("the path is missing".into())),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("torch-cuda", gpu)) => match CudaGeometry::by_name(gpu) {
                Some(geometry) => Ok(Self::TorchCuda(geometry)),
                None => {
                    let (sms, threads) = gpu
                        .split_once('x')
                        .and_then(|(sms, threads)| Some((sms.parse().ok()?, threads.parse().ok()?)))
                        .ok_or_else(|| wrong(format!("unknown GPU '{gpu}'")))?;
                    CudaGeometry::new(sms, threads).map(Self::TorchCuda)
                }
            },
            _ => Err(wrong("unknown kind of noise".into())),
        }
    }
}

impl fmt::Display for NoiseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Portable => f.write_str("portable"),
            Self::TorchCuda(gpu) => {
                write!(f, "torch-cuda:{}x{}", gpu.multiprocessors(), gpu.threads_per_multiprocessor())
            }
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

pub(crate) fn gpu_names() -> String {
    CudaGeometry::names().collect::<Vec<_>>().join(", ")
}

/// Room for `n` values, or an error where the allocator would end the process.
fn empty(n: usize) -> Result<Vec<f32>, Error> {
    // Torch splits launches beyond 32-bit indexing, so that element order would be another; no latent is near it.
    const MOST: usize = i32::MAX as usize;
    let mut out = Vec::new();
    if n > MOST || out.try_reserve_exact(n).is_err() {
        return Err(Error::TooLarge { elements: n, most: MOST });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_back() {
        let cuda = |sms, threads| NoiseKind::TorchCuda(CudaGeometry::new(sms, threads).unwrap());
        for (spec, kind) in [
            ("portable", NoiseKind::default()),
            ("torch-cuda", cuda(132, 2048)),
            ("torch-cuda:170x1536", cuda(170, 1536)),
            ("torch-cuda:rtx-5090", cuda(170, 1536)),
            ("file:C:/a b/x.safetensors", NoiseKind::File("C:/a b/x.safetensors".into())),
        ] {
            let parsed: NoiseKind = spec.parse().unwrap();
            assert_eq!(parsed, kind, "{spec}");
            assert_eq!(parsed.to_string().parse::<NoiseKind>().unwrap(), kind, "{spec}");
        }
    }

    #[test]
    fn wrong_specs_say_what_is_known() {
        for spec in
            ["", "torch", "torch-cuda:", "torch-cuda:gtx-1", "torch-cuda:1x", "torch-cuda:-1x2048", "file:"]
        {
            let error = spec.parse::<NoiseKind>().unwrap_err().to_string();
            assert!(error.contains("rtx-5090"), "{error}");
        }
        assert!(matches!("torch-cuda:0x2048".parse::<NoiseKind>(), Err(Error::Geometry { .. })));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for kind in [NoiseKind::Portable, NoiseKind::TorchCuda(CudaGeometry::default())] {
            let mut source = kind.source(0).unwrap();
            assert!(matches!(source.draw(usize::MAX), Err(Error::TooLarge { .. })));
            assert!(source.draw(0).unwrap().is_empty());
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(spec in "(torch-cuda|file|portable|)(:|)[0-9a-z:x-]{0,14}") {
            let _ = spec.parse::<NoiseKind>();
        }
    }
}
