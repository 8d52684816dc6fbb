//! What can go wrong in a compile, and which exit code it means.

use std::path::PathBuf;

/// A compile that did not happen: what, where, expected against found, and a hint.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Choices that contradict each other or do not fit the model.
    #[error("{what}\nhint: {hint}")]
    Usage {
        /// What does not fit.
        what: String,
        /// What does.
        hint: String,
    },
    /// A checkpoint that is not what it should be.
    #[error("{}: {what}\nhint: {hint}", path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A file that cannot be read as a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] turbo_checkpoint::Error),
    /// Tensors that do not make the network they were taken for.
    #[error("{}: {cause}", path.display())]
    Network {
        /// The checkpoint.
        path: PathBuf,
        /// Which tensor, expected against found.
        cause: String,
    },
    /// A graph that ONNX cannot hold.
    #[error("{stage}: {cause}")]
    Onnx {
        /// Stage name.
        stage: String,
        /// What is wrong.
        cause: turbo_onnx::OnnxError,
    },
    /// The engine file cannot be written.
    #[error(transparent)]
    EngineFile(#[from] turbo_engine_file::Error),
    /// Another file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// TensorRT, the GPU or its libraries.
    #[error("{0}")]
    Gpu(turbo_pipeline::RunError),
    /// Ctrl-C.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl From<turbo_pipeline::RunError> for CompileError {
    fn from(error: turbo_pipeline::RunError) -> Self {
        match error {
            turbo_pipeline::RunError::Interrupted => CompileError::Interrupted,
            error => CompileError::Gpu(error),
        }
    }
}

impl CompileError {
    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        CompileError::Usage { what: what.into(), hint: hint.into() }
    }

    pub(crate) fn input(path: impl Into<PathBuf>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        CompileError::Input { path: path.into(), what: what.into(), hint: hint.into() }
    }

    /// Process exit code: 2 usage, 3 bad input file, 4 does not fit this machine, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            CompileError::Usage { .. } => 2,
            CompileError::Input { .. }
            | CompileError::Checkpoint(_)
            | CompileError::Network { .. }
            | CompileError::Onnx { .. } => 3,
            CompileError::EngineFile(_) | CompileError::Io { .. } | CompileError::Gpu(_) => 4,
            CompileError::Interrupted => 130,
        }
    }
}
