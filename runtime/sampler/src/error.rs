//! What can go wrong between a seed and a latent.

use std::path::PathBuf;

/// An error of the sampler or of a noise source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of steps is not one the distilled networks were trained for.
    #[error("{found} steps: expected 1 to {max}, the schedule of an rCM network has no more", max = crate::MAX_STEPS)]
    Steps {
        /// The number asked for.
        found: usize,
    },
    /// `sigma_max` gives no falling sequence of times.
    #[error(
        "sigma_max {found} with {steps} step(s): expected a finite number above {least:.2}, so that time falls at \
         every step (usual: 80 for text-to-video, 200 for image-to-video)"
    )]
    SigmaMax {
        /// The value asked for.
        found: f64,
        /// Steps of the schedule.
        steps: usize,
        /// Values must be greater than this.
        least: f64,
    },
    /// Two slices that describe the same latent differ in length.
    #[error("{what} has {found} elements: expected {expected}, as many as the state")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Length of the state.
        expected: usize,
    },
    /// A noise specification that does not parse.
    #[error("noise '{spec}': {reason}; expected portable, file:PATH, torch-cuda, torch-cuda:GPU or torch-cuda:SMSxTHREADS \
             (GPU is one of {gpus})", gpus = crate::noise::gpu_names())]
    Spec {
        /// The text given.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A multiprocessor count or thread count that no launch can have.
    #[error(
        "torch-cuda noise for {multiprocessors} multiprocessors of {threads_per_multiprocessor} threads: expected 1 \
         to 65535 multiprocessors and 256 to 65535 threads (for example 132x2048)"
    )]
    Geometry {
        /// Multiprocessors of the GPU.
        multiprocessors: u32,
        /// Resident threads of each.
        threads_per_multiprocessor: u32,
    },
    /// A draw too large for memory or for the generator's counters.
    #[error("a noise draw of {elements} elements is too large: expected at most {most}")]
    TooLarge {
        /// Elements asked for.
        elements: usize,
        /// Most elements of one draw.
        most: usize,
    },
    /// A noise file that cannot be read.
    #[error("noise file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A noise file that is not a safetensors file.
    #[error("noise file {name}: not a usable safetensors file: {source}")]
    Format {
        /// The file.
        name: String,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A noise file without the tensor that the next draw needs, or with a wrong one.
    #[error("noise file {name}: tensor '{tensor}' {problem}")]
    Tensor {
        /// The file.
        name: String,
        /// The tensor of this draw: `noise_init`, then `noise0`, `noise1`, ...
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
}
