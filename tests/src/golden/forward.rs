//! One forward of a DiT: the text side, then the denoiser.

use anyhow::Result;
use turbo_models::dit::{self, Attention, Config, LatentSize, Linear, Recipe};
use turbo_pipeline::backend::Tensor;

use super::backend::{Backend, Loaded, Outputs};
use super::compiled::Compiled;

/// A DiT with its recipe on a backend.
pub(super) struct Forward<'a> {
    backend: &'a dyn Backend,
    dit: &'a Compiled,
    config: Config,
    recipe: Recipe,
}

/// The plain transformer, as upstream trained it.
pub(super) fn dense() -> Recipe {
    Recipe { attention: Attention::Dense, linear: Linear::Bf16, ..Recipe::default() }
}

impl<'a> Forward<'a> {
    pub(super) fn new(backend: &'a dyn Backend, dit: &'a Compiled, recipe: Recipe) -> Result<Self> {
        Ok(Forward { backend, dit, config: Config::read(dit.network, None)?, recipe })
    }

    /// Keys and values of a text `[b, text_len, text_dim]`, or inner values of that graph.
    pub(super) fn text(&self, context: &Tensor, taps: &[&str]) -> Result<Outputs> {
        let params = self.backend.params(&self.dit.stored);
        let graph = dit::context(&self.config, &self.recipe, params, context.shape[0])?;
        self.backend.load(Some(self.dit), graph, taps)?.run(&[("text_emb", context)])
    }

    /// The denoiser for latents of the shape of `x [b, c, T, H, W]`.
    pub(super) fn denoiser(&self, x: &Tensor, taps: &[&str]) -> Result<Denoiser<'a>> {
        let params = self.backend.params(&self.dit.stored);
        let size = LatentSize { frames: x.shape[2], height: x.shape[3], width: x.shape[4] };
        let graph = dit::denoiser(&self.config, &self.recipe, params, x.shape[0], size)?;
        let network = self.backend.load(Some(self.dit), graph, taps)?;
        Ok(Denoiser { network, freq_dim: self.config.freq_dim })
    }
}

/// A loaded denoiser.
pub(super) struct Denoiser<'a> {
    network: Box<dyn Loaded + 'a>,
    freq_dim: usize,
}

impl Denoiser<'_> {
    /// The velocity of latents `x`, with the condition of image-to-video, at one time step for each of the batch.
    pub(super) fn run(
        &mut self,
        x: &Tensor,
        condition: Option<&Tensor>,
        text: &Outputs,
        timesteps: &[f32],
    ) -> Result<Outputs> {
        let time = timesteps.iter().flat_map(|&t| turbo_sampler::time_embedding(t, self.freq_dim)).collect();
        let time = Tensor::f32(vec![timesteps.len(), self.freq_dim], time);
        let mut inputs: Vec<(&str, &Tensor)> = vec![("x", x), ("time", &time)];
        inputs.extend(condition.map(|y| ("condition", y)));
        inputs.extend(text.inputs());
        self.network.run(&inputs)
    }
}
