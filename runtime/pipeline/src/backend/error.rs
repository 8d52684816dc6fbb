//! What can go wrong with ONNX Runtime.

use std::path::PathBuf;

/// A failure of the backend: what, where, expected against found, and a hint.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The library is nowhere.
    #[error(
        "ONNX Runtime's library was not found; looked for {name} in {}\nhint: {}",
        places(looked, *system),
        HINT
    )]
    NotFound {
        /// File name looked for, with or without a version.
        name: &'static str,
        /// Files and folders looked at.
        looked: Vec<PathBuf>,
        /// Whether the system's loader was asked as well.
        system: bool,
    },
    /// The library is there and cannot be used.
    #[error("{} cannot be used as ONNX Runtime: {cause}\nhint: {}", path.display(), HINT)]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What its loader says.
        cause: String,
    },
    /// The library is older than what this program was written for.
    #[error(
        "{} is ONNX Runtime {version}, 1.{} or a newer 1.x is needed\nhint: {}",
        path.display(),
        ort::MINOR_VERSION,
        HINT
    )]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// Another library was loaded before.
    #[error("ONNX Runtime is loaded from {}, it cannot be loaded from {} as well", loaded.display(), asked.display())]
    AlreadyLoaded {
        /// The one in use.
        loaded: PathBuf,
        /// The one asked for.
        asked: PathBuf,
    },
    /// A graph that ONNX Runtime refuses.
    #[error("{stage}: ONNX Runtime refuses the graph: {cause}")]
    Load {
        /// Stage name.
        stage: String,
        /// What it says.
        cause: String,
    },
    /// A weight that is not what the graph asks for.
    #[error("{stage}: weight {weight} must be {expected}, found {found}")]
    Weight {
        /// Stage name.
        stage: String,
        /// Weight name.
        weight: String,
        /// Type and shape of the graph.
        expected: String,
        /// Type and shape stored.
        found: String,
    },
    /// An input that does not fit the graph.
    #[error("{stage}: input `{input}` must be {expected}, found {found}")]
    Input {
        /// Stage name.
        stage: String,
        /// Input name.
        input: String,
        /// Type and shape of the graph.
        expected: String,
        /// Type and shape given.
        found: String,
    },
    /// A run that failed.
    #[error("{stage}: the run failed: {cause}")]
    Run {
        /// Stage name.
        stage: String,
        /// What ONNX Runtime or an op says.
        cause: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// Anything else that ONNX Runtime reports.
    #[error("ONNX Runtime: {0}")]
    Other(String),
}

/// How to get a library.
const HINT: &str = "in a source tree `cargo xtask onnxruntime` fetches it; elsewhere `pip install onnxruntime` \
    and give the `onnxruntime/capi` folder of that package with --onnxruntime or ORT_DYLIB_PATH";

fn places(looked: &[PathBuf], system: bool) -> String {
    let mut shown: Vec<String> = looked.iter().map(|p| p.display().to_string()).collect();
    shown.extend(system.then(|| "the system's library path".to_string()));
    shown.join(", ")
}
