//! What can go wrong with ONNX Runtime.

use std::path::PathBuf;

/// A failure of the backend: what, where, expected against found, and a hint.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The library is nowhere.
    #[error(
        "ONNX Runtime's library was not found; looked for {name} in {}\nhint: `cargo xtask onnxruntime` fetches it; \
         or `pip install onnxruntime` and give its capi/{name}... with --onnxruntime",
        list(looked)
    )]
    NotFound {
        /// File name looked for.
        name: &'static str,
        /// Folders looked in.
        looked: Vec<PathBuf>,
    },
    /// The library is there and cannot be used.
    #[error("{}: {cause}\nhint: ONNX Runtime 1.{} or newer for this processor is needed", path.display(), ort::MINOR_VERSION)]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What its loader says.
        cause: String,
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

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    shown.join(", ")
}
