//! What can go wrong in a run, and which exit code it means.

use crate::backend::BackendError;

/// A run that made no video.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Choices that do not fit the engine file.
    #[error("{what}\nhint: {hint}")]
    Usage {
        /// What does not fit.
        what: String,
        /// What does.
        hint: String,
    },
    /// The engine file is damaged or of another kind.
    #[error(transparent)]
    EngineFile(#[from] turbo_engine_file::Error),
    /// The engine file contradicts itself.
    #[error("the engine file is inconsistent: {0}\nhint: compile it again")]
    Inconsistent(String),
    /// ONNX Runtime is missing or failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// TensorRT is missing or failed.
    #[error(transparent)]
    TensorRt(turbo_trt::Error),
    /// The prompt cannot be used.
    #[error(transparent)]
    Text(#[from] turbo_text::Error),
    /// The sampler's settings or noise cannot be used.
    #[error(transparent)]
    Sampler(#[from] turbo_sampler::Error),
    /// The image or the output cannot be used.
    #[error(transparent)]
    Media(#[from] turbo_media::Error),
    /// This machine cannot run the engine file.
    #[error("{what}\nhint: {hint}")]
    Machine {
        /// What is missing, expected against found.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Ctrl-C.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl From<turbo_trt::Error> for RunError {
    fn from(error: turbo_trt::Error) -> Self {
        match error {
            turbo_trt::Error::Interrupted => RunError::Interrupted,
            error => RunError::TensorRt(error),
        }
    }
}

impl RunError {
    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        RunError::Usage { what: what.into(), hint: hint.into() }
    }
}
