//! One forward of a DiT: what does not change from step to step, then the denoiser.

use anyhow::{Context as _, Result, ensure};
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

    /// The graph that runs before the first step, for texts of `batch` rows and so many times.
    pub(super) fn context(&self, batch: usize, times: usize, taps: &[&str]) -> Result<Context<'a>> {
        let params = self.backend.params(&self.dit.stored);
        let graph = dit::context(&self.config, &self.recipe, params, batch, times)?;
        let network = self.backend.load(Some(self.dit), graph, taps)?;
        Ok(Context { network, times: [times, self.config.freq_dim] })
    }

    /// What that graph gives for a text `[b, text_len, text_dim]` and the network time steps of each step, b for each.
    pub(super) fn given(&self, text: &Tensor, timesteps: &[f32], taps: &[&str]) -> Result<Outputs> {
        self.context(text.shape[0], timesteps.len(), taps)?.run(text, timesteps)
    }

    /// The denoiser for latents of the shape of `x [b, c, T, H, W]`.
    pub(super) fn denoiser(&self, x: &Tensor, taps: &[&str]) -> Result<Denoiser<'a>> {
        let params = self.backend.params(&self.dit.stored);
        let size = LatentSize { frames: x.shape[2], height: x.shape[3], width: x.shape[4] };
        let graph = dit::denoiser(&self.config, &self.recipe, params, x.shape[0], size)?;
        Ok(Denoiser { network: self.backend.load(Some(self.dit), graph, taps)? })
    }
}

/// The loaded graph that runs before the first step.
pub(super) struct Context<'a> {
    network: Box<dyn Loaded + 'a>,
    /// Shape of the times that it takes.
    times: [usize; 2],
}

impl Context<'_> {
    /// What it gives for a text and as many network time steps as it takes, or fewer.
    pub(super) fn run(&mut self, text: &Tensor, timesteps: &[f32]) -> Result<Outputs> {
        let [count, freq_dim] = self.times;
        let mut times: Vec<f32> =
            timesteps.iter().flat_map(|&t| turbo_sampler::time_embedding(t, freq_dim)).collect();
        ensure!(times.len() <= count * freq_dim, "{} times, the graph takes {count}", timesteps.len());
        times.resize(count * freq_dim, 0.0);
        self.network.run(&[("text_emb", text), ("times", &Tensor::f32(vec![count, freq_dim], times))])
    }
}

/// A loaded denoiser.
pub(super) struct Denoiser<'a> {
    network: Box<dyn Loaded + 'a>,
}

impl Denoiser<'_> {
    /// The velocity of latents `x [b, c, T, H, W]`, with the condition of image-to-video, in one of the steps whose
    /// times were given.
    pub(super) fn run(
        &mut self,
        x: &Tensor,
        condition: Option<&Tensor>,
        given: &Outputs,
        step: usize,
    ) -> Result<Outputs> {
        let mut inputs: Vec<(&str, &Tensor)> = vec![("x", x)];
        inputs.extend(condition.map(|y| ("condition", y)));
        let modulation = given.tensor("modulation")?;
        let (batch, row) = (x.shape[0], modulation.shape[1..].iter().product::<usize>());
        let rows = modulation.as_f32().get(step * batch * row..(step + 1) * batch * row).context("step")?;
        let shape = [&[batch], &modulation.shape[1..]].concat();
        let rows = Tensor::f32(shape, rows.to_vec());
        inputs.push(("modulation", &rows));
        inputs.extend(given.inputs().filter(|(name, _)| *name != "modulation"));
        self.network.run(&inputs)
    }
}
