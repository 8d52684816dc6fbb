//! Where the time went.

use serde::Serialize;

/// One part of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// What was done, such as `load dit` or `step 1`.
    pub part: String,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// What a run did and where its time went; everything between prompt and finished frames is in a part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The prompt after cleaning.
    pub prompt: String,
    /// Tokens of the prompt, end mark included.
    pub tokens: usize,
    /// Text that did not fit the model's text length, when some was cut.
    pub cut: Option<String>,
    /// Whether the prompt's embedding came from the cache.
    pub cached_embedding: bool,
    /// Width and height of the video in pixels, such as `832x480`.
    pub size: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Steps taken.
    pub steps: usize,
    /// Frames made.
    pub frames: usize,
    /// Parts in the order of their end. Video encoding overlaps VAE decoding: only what it adds is listed.
    pub parts: Vec<Timing>,
    /// The final latent, `[c, T, H, W]`.
    #[serde(skip)]
    pub latent: Vec<f32>,
    /// Wall time of all of it, in seconds.
    pub total_seconds: f64,
    /// Highest resident memory of the process in bytes, mapped weights included, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Most GPU memory in use at once in bytes, where a GPU was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_gpu_memory_bytes: Option<u64>,
}
