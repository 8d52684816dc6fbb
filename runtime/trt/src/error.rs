//! What can go wrong between Rust and TensorRT.

use std::fmt;
use std::path::PathBuf;

/// A failure: what, where, expected against found, and a hint where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A library is nowhere.
    #[error(
        "{name} was not found; looked for it in {}\nhint: {}",
        places(looked, *system),
        hint(name)
    )]
    Missing {
        /// File name looked for.
        name: String,
        /// Files and folders looked at.
        looked: Vec<PathBuf>,
        /// Whether the system's loader was asked as well.
        system: bool,
    },
    /// A library is there and cannot be used.
    #[error("{} cannot be used: {cause}\nhint: {}", path.display(), hint(&path.to_string_lossy()))]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What its loader says.
        cause: String,
    },
    /// The shim belongs to another build of this program.
    #[error("{} speaks version {found} of the shim's interface, this program version {expected}\n\
             hint: use the shim that was built with this program", path.display())]
    Abi {
        /// The shim.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// Ours.
        expected: i32,
    },
    /// A TensorRT that the shims were not made for.
    #[error(
        "{} is TensorRT {found}, which is not supported: 10.6 or a newer 10.x, or 11.x is needed\n\
         hint: give the folder of one with --tensorrt or TENSORRT_ROOT",
        path.display()
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
    /// A plugin library that TensorRT refuses.
    #[error("{}: {cause}{}", path.display(), lines(log))]
    Plugins {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// An ONNX graph that the parser refuses.
    #[error("TensorRT cannot read the graph: {cause}{}", lines(log))]
    Parse {
        /// What the parser says, node by node.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// A network that cannot be built.
    #[error("TensorRT cannot build the engine: {cause}{}", lines(log))]
    Build {
        /// What is wrong.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A plan that cannot be loaded.
    #[error("TensorRT cannot load the engine{}: {cause}{}", of("tensor", tensor), lines(log))]
    Engine {
        /// The tensor, where it is about one.
        tensor: Option<String>,
        /// What is wrong.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// Weights that cannot be put into an engine.
    #[error("TensorRT cannot refit the engine{}: {cause}{}", of("weight", weight), lines(log))]
    Refit {
        /// The weight, where it is about one.
        weight: Option<String>,
        /// What is wrong.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// A run that fails.
    #[error("TensorRT cannot run the engine{}: {cause}{}", of("tensor", tensor), lines(log))]
    Run {
        /// The tensor, where it is about one.
        tensor: Option<String>,
        /// What is wrong.
        cause: String,
        /// TensorRT's warnings and errors.
        log: Vec<String>,
    },
    /// No GPU to run on.
    #[error("no GPU can be used: {0}")]
    NoGpu(NoGpu),
    /// A CUDA call that fails.
    #[error("{call}: {text}\nhint: nvidia-smi shows whether the GPU still answers, and what else uses it")]
    Cuda {
        /// The call.
        call: String,
        /// What CUDA says.
        text: String,
    },
    /// Not enough memory.
    #[error("{call}: out of memory: {asked} asked for, {free} of {total} free", asked = bytes(*asked),
            free = bytes(*free), total = bytes(*total))]
    OutOfMemory {
        /// The call.
        call: String,
        /// Bytes asked for; 0 where only the library knows.
        asked: u64,
        /// Bytes free on the GPU; 0 where it cannot be asked.
        free: u64,
        /// Bytes of the GPU.
        total: u64,
    },
    /// A buffer that is too short, misaligned or otherwise unfit.
    #[error("{what}: {found}, expected {expected}")]
    Buffer {
        /// Which buffer.
        what: String,
        /// What was given.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// Something that cannot be part of a captured graph.
    #[error("{what} cannot be captured into a CUDA graph")]
    Capturing {
        /// The operation.
        what: &'static str,
    },
    /// A name or path with a zero byte in it.
    #[error("{name:?} has a zero byte in it")]
    Name {
        /// The name.
        name: String,
    },
    /// What should not happen.
    #[error("the TensorRT shim: {0}")]
    Internal(String),
}

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    /// CUDA finds no driver.
    #[error(
        "there is no NVIDIA driver (libcuda.so.1)\n\
             hint: install it, until nvidia-smi lists a GPU; turbo-compile --target cpu needs none"
    )]
    NoDriver,
    /// A driver of an older CUDA.
    #[error("the NVIDIA driver is for CUDA {}.{}, the GPU libraries need CUDA {needed} or newer\n\
             hint: update the driver, or build the libraries with an older CUDA: cargo xtask gpu", found.0, found.1)]
    OldDriver {
        /// CUDA of the driver.
        found: (i32, i32),
        /// Major version of CUDA that the libraries were compiled with.
        needed: i32,
    },
    /// A driver that gives none.
    #[error("the NVIDIA driver, for CUDA {}.{}, says: {said}\n\
             hint: nvidia-smi lists the GPUs, CUDA_VISIBLE_DEVICES may hide them", driver.0, driver.1)]
    NoneFound {
        /// CUDA of the driver.
        driver: (i32, i32),
        /// CUDA's text.
        said: String,
    },
}

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: i32,
    /// Minor.
    pub minor: i32,
    /// Patch.
    pub patch: i32,
}

impl Version {
    /// From TensorRT's number; before version 10 the major counted thousands.
    pub(crate) fn from_number(number: i32) -> Version {
        let unit = if number < 100_000 { 1000 } else { 10_000 };
        Version { major: number / unit, minor: number % unit / 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn hint(name: &str) -> &'static str {
    if name.contains("libturbo_trt") {
        "cargo xtask gpu builds it; it belongs beside the command or in ../lib, or give its folder with --gpu-libraries"
    } else {
        "install TensorRT 10.6 or newer, and give its folder with --tensorrt or TENSORRT_ROOT"
    }
}

fn places(looked: &[PathBuf], system: bool) -> String {
    let mut shown: Vec<String> = looked.iter().map(|p| p.display().to_string()).collect();
    shown.extend(system.then(|| "the system's library path".to_string()));
    shown.join(", ")
}

fn of(kind: &str, name: &Option<String>) -> String {
    name.as_ref().map(|name| format!(", {kind} {name}")).unwrap_or_default()
}

/// The newest lines of a log, each on its own.
fn lines(log: &[String]) -> String {
    const SHOWN: usize = 20;
    log[log.len().saturating_sub(SHOWN)..].iter().map(|line| format!("\n  {line}")).collect()
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_notations() {
        assert_eq!(Version::from_number(100_600).to_string(), "10.6.0");
        assert_eq!(Version::from_number(110_401).to_string(), "11.4.1");
        assert_eq!(Version::from_number(8601).to_string(), "8.6.1");
    }

    #[test]
    fn memory_is_told_with_what_is_free() {
        let error = Error::OutOfMemory {
            call: "cudaMalloc".to_string(),
            asked: 3 << 30,
            free: 1 << 20,
            total: 24 << 30,
        };
        let text = error.to_string();
        assert!(text.contains("3072.0 MiB asked for, 1.0 MiB of 24576.0 MiB free"), "{text}");
    }
}
