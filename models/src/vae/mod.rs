//! The Wan 2.1 VAE in the form that streams over time.
//!
//! Upstream: TurboDiffusion `rcm/tokenizers/wan2pt1.py` (`WanVAE_`, cached path). Encoder and decoder are two graphs
//! each, one for the first frame of a video and one for every chunk after it, over the same weights. What a causal
//! convolution needs of earlier frames is a state that the caller carries from run to run, so memory does not grow
//! with the length of a video.

mod layers;
pub mod names;

use turbo_graph::{DType, Graph, GraphError, Value};

use crate::{Params, Weights};
use layers::Layers;

/// What the latents' mean is, per channel (Wan 2.1, `WanVAE`).
pub const LATENT_MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
    -0.1922, -0.9497, 0.2503, -0.2921,
];
/// What the latents' standard deviation is, per channel (Wan 2.1, `WanVAE`).
pub const LATENT_STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
    1.1253, 2.8251, 1.9160,
];

/// Pixels per latent along height and width.
pub const STRIDE: usize = 8;
/// Video frames per latent frame after the first.
pub const FRAMES: usize = 4;

/// A tensor that a stage carries from run to run; it starts as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name; the graph's input is `state.NAME`, its output `next.NAME`.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
}

/// A graph and the states it touches.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The graph.
    pub graph: Graph,
    /// Every state that the graph takes, gives, or both.
    pub state: Vec<State>,
}

/// What cannot be left to the tensors' names: everything else about the VAE is read off them while building.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Latent channels.
    pub z_dim: usize,
}

/// A checkpoint whose tensors do not make a Wan 2.1 VAE.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A tensor that every Wan VAE has is not there.
    #[error("tensor {0} is missing: this is not a Wan 2.1 VAE")]
    Missing(&'static str),
    /// Latent statistics are known for 16 channels only.
    #[error(
        "the VAE has {found} latent channels; Wan 2.1's has {expected}, and Wan 2.2's own VAE is not supported"
    )]
    Channels {
        /// In the checkpoint.
        found: usize,
        /// In Wan 2.1.
        expected: usize,
    },
}

impl Config {
    /// Reads the sizes from canonical tensors.
    ///
    /// # Errors
    /// Tensors that are missing, or another number of latent channels than Wan 2.1 has.
    pub fn read(weights: &dyn Weights) -> Result<Config, ConfigError> {
        let name = "decoder.conv1.weight";
        let (_, shape) = weights.info(name).ok_or(ConfigError::Missing(name))?;
        let z_dim = shape.get(1).copied().unwrap_or(0);
        if z_dim != LATENT_MEAN.len() {
            return Err(ConfigError::Channels { found: z_dim, expected: LATENT_MEAN.len() });
        }
        Ok(Config { z_dim })
    }
}

/// Latent statistics as `[1, z, 1, 1, 1]` constants in the network's type.
fn statistics(g: &mut Graph, params: Params<'_>, (mean, std): (&[f32], &[f32])) -> (Value, Value) {
    let constant = |g: &mut Graph, v: &[f32]| {
        let value = g.constant_f32(&[1, v.len(), 1, 1, 1], v);
        g.cast(value, params.compute)
    };
    (constant(g, mean), constant(g, std))
}

/// One latent frame `latent [1, z, 1, h, w]` (normalised) to `video [1, 3, t, 8h, 8w]`, not clamped: 1 frame from the
/// first graph, 4 from the other. Both f32. `statistics` are the latents' mean and standard deviation.
///
/// # Errors
/// Weights that are missing or have another shape, named.
pub fn decoder(
    config: &Config,
    params: Params<'_>,
    statistics: (&[f32], &[f32]),
    h: usize,
    w: usize,
    first: bool,
) -> Result<Stage, GraphError> {
    let mut g = Graph::new(if first { "vae_decoder_first" } else { "vae_decoder" });
    let latent = g.input("latent", DType::F32, &[1, config.z_dim, 1, h, w]);
    let latent = g.cast(latent, params.compute);
    let (mean, std) = self::statistics(&mut g, params, statistics);
    let z = g.mul(latent, std);
    let z = g.add(z, mean);
    let z = g.label(z, "latent_denorm");
    let mut layers = Layers::new(params, first);
    let x = layers.pointwise(&mut g, "conv2", z);
    let x = g.label(x, "conv2");
    let video = g.scope("decoder", |g| {
        let x = layers.causal(g, "conv1", x);
        let x = g.label(x, "conv1");
        let x = layers.sequence(g, "middle", x);
        let x = layers.sequence(g, "upsamples", x);
        layers.head(g, x)
    });
    let video = g.cast(video, DType::F32);
    g.output("video", video);
    layers.finish(g)
}

/// Video frames `video [1, 3, t, H, W]` in `[-1, 1]`, 1 for the first graph and 4 for the other, to one normalised
/// latent frame `latent [1, z, 1, H/8, W/8]`. Both f32.
///
/// # Errors
/// Weights that are missing or have another shape, named.
pub fn encoder(
    config: &Config,
    params: Params<'_>,
    statistics: (&[f32], &[f32]),
    height: usize,
    width: usize,
    first: bool,
) -> Result<Stage, GraphError> {
    let mut g = Graph::new(if first { "vae_encoder_first" } else { "vae_encoder" });
    let frames = if first { 1 } else { FRAMES };
    let video = g.input("video", DType::F32, &[1, 3, frames, height, width]);
    let x = g.cast(video, params.compute);
    let mut layers = Layers::new(params, first);
    let x = g.scope("encoder", |g| {
        let x = layers.causal(g, "conv1", x);
        let x = g.label(x, "conv1");
        let x = layers.sequence(g, "downsamples", x);
        let x = layers.sequence(g, "middle", x);
        layers.head(g, x)
    });
    let moments = layers.pointwise(&mut g, "conv1", x);
    let moments = g.label(moments, "moments");
    let mu = g.slice(moments, 1, 0, config.z_dim);
    let (mean, std) = self::statistics(&mut g, params, statistics);
    let mu = g.sub(mu, mean);
    // Upstream multiplies by 1 / std.
    let latent = g.div(mu, std);
    let latent = g.cast(latent, DType::F32);
    g.output("latent", latent);
    layers.finish(g)
}
