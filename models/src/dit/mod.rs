//! The Wan diffusion transformer: 2.1 text-to-video and 2.2 image-to-video.
//!
//! Upstream: TurboDiffusion `rcm/networks/wan2pt1.py` and `wan2pt2.py`. Two graphs come from one network: what depends
//! on the prompt and on the schedule alone ([`context`]), which runs once, and the denoiser ([`denoiser`]), which runs
//! once per step.

mod attention;
mod block;
mod config;
mod linear;
mod modulation;
pub mod names;
mod recipe;
mod rope;

use std::ops::Range;

use turbo_graph::{DType, Graph, GraphError, Value};

pub use config::{Config, ConfigError};
pub use recipe::{Attention, Linear, PvType, Recipe, Tiling, keep_blocks, weight_name};

use crate::Params;
use linear::Linears;

/// Patch extents along time, height and width.
pub const PATCH: [usize; 3] = [1, 2, 2];
/// The position table ends here: largest patch grid along height and width.
pub const MAX_GRID: usize = 128;

/// Latent extents of one video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSize {
    /// Latent frames.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
}

impl LatentSize {
    /// Patch grid `[T, H, W]`.
    pub fn grid(&self) -> [usize; 3] {
        [self.frames / PATCH[0], self.height / PATCH[1], self.width / PATCH[2]]
    }

    /// Number of tokens, `L`.
    pub fn tokens(&self) -> usize {
        self.grid().iter().product()
    }
}

/// What stays the same from step to step, in one graph that runs before the first.
///
/// Inputs: `text_emb [b, text_len, text_dim]` f32; `times [r, freq_dim]` f32, the sinusoidal embeddings of network
/// time steps (cosines first), which the sampler computes in f64. Outputs: the cross-attention keys and values of every
/// block, `blocks.N.cross_attn.k` and `.v`, each `[b*text_len, dim]`; `modulation [r, 6 * layers + 2, dim]` f32, for each
/// time what shifts, scales and gates every block and the head, in upstream's order, the scales with their 1.
///
/// Padded rows of the text are zero on input but not afterwards (the biases see to that) and are attended to, as
/// upstream.
///
/// # Errors
/// Weights that are missing or have another shape, named.
pub fn context(
    config: &Config,
    recipe: &Recipe,
    params: Params<'_>,
    batch: usize,
    times: usize,
) -> Result<Graph, GraphError> {
    let mut g = Graph::new("dit_context");
    let text = g.input("text_emb", DType::F32, &[batch, config.text_len, config.text_dim]);
    let times = g.input("times", DType::F32, &[times, config.freq_dim]);
    let rows = batch * config.text_len;
    let text = g.cast(text, params.compute);
    let text = g.reshape(text, &[rows, config.text_dim]);
    let plain = Linears::plain(params);
    let hidden = plain.named(&mut g, "text_embedding.0", text, config.dim);
    let hidden = g.gelu_tanh(hidden);
    let context = plain.named(&mut g, "text_embedding.2", hidden, config.dim);
    let context = g.label(context, "text_embedding");
    let linears = Linears::new(recipe, params);
    let input = linears.input(&mut g, context);
    let mut outputs = Vec::new();
    for i in 0..config.layers {
        let path = format!("blocks.{i}.cross_attn");
        let (k, v) = g.scope(&path, |g| {
            let k = linears.apply(g, "k", &input, config.dim);
            let k = attention::rms_norm(g, params, "norm_k", k, config.eps);
            (k, linears.apply(g, "v", &input, config.dim))
        });
        outputs.push((format!("{path}.k"), k));
        outputs.push((format!("{path}.v"), v));
    }
    outputs.push((modulation::NAME.to_string(), modulation::table(&mut g, config, params, times)));
    for (name, value) in outputs {
        g.output(&name, value);
    }
    g.finish()
}

/// One forward of the denoiser.
///
/// Inputs: `x [b, out_dim, T, H, W]` f32; for image-to-video `condition [b, in_dim - out_dim, T, H, W]` f32;
/// and what [`context`] gives, of `modulation` the rows of this step. Output: `velocity [b, out_dim, T, H, W]` f32.
///
/// # Errors
/// Weights that are missing or have another shape, sizes outside the position table, a recipe that does not
/// fit the checkpoint.
pub fn denoiser(
    config: &Config,
    recipe: &Recipe,
    params: Params<'_>,
    batch: usize,
    size: LatentSize,
) -> Result<Graph, GraphError> {
    denoiser_part(config, recipe, params, batch, size, 0..config.layers)
}

/// Splits the blocks into `parts` runs of nearly the same length; fewer where there are fewer blocks.
pub fn parts(layers: usize, parts: usize) -> Vec<Range<usize>> {
    let parts = parts.clamp(1, layers.max(1));
    (0..parts).map(|i| i * layers / parts..(i + 1) * layers / parts).collect()
}

/// The blocks `blocks` of the denoiser, with what comes before the first and after the last.
///
/// Parts run one after the other, each on what an earlier one gave: an input `from.NAME` takes the latest output
/// `to.NAME`. NAME is `hidden [b*l, dim]`. Otherwise inputs and output are those of [`denoiser`]: latent and condition
/// enter the part with the first block, the text's keys and values that with their block, the modulation all of them;
/// the last one gives the velocity.
///
/// # Errors
/// As [`denoiser`].
pub fn denoiser_part(
    config: &Config,
    recipe: &Recipe,
    params: Params<'_>,
    batch: usize,
    size: LatentSize,
    blocks: Range<usize>,
) -> Result<Graph, GraphError> {
    let mut g = Graph::new("dit");
    let [t, h, w] = size.grid();
    let tokens = size.tokens();
    if h > MAX_GRID || w > MAX_GRID {
        g.fail("patch_embedding", format!("patch grid {h}x{w}, the position table ends at {MAX_GRID}"));
    }
    let (is_first, is_last) = (blocks.start == 0, blocks.end == config.layers);
    let latent = |channels: usize| [batch, channels, size.frames, size.height, size.width];
    let mut x = match is_first {
        true => {
            let mut x = g.input("x", DType::F32, &latent(config.out_dim));
            if config.in_dim > config.out_dim {
                let y = g.input("condition", DType::F32, &latent(config.in_dim - config.out_dim));
                x = g.concat(&[x, y], 1);
            }
            x
        }
        false => g.input("from.hidden", params.compute, &[batch * tokens, config.dim]),
    };
    let modulation = modulation::Rows::input(&mut g, config, batch);
    let texts: Vec<(usize, (Value, Value))> = blocks
        .map(|i| {
            let shape = [batch * config.text_len, config.dim];
            let k = g.input(&format!("blocks.{i}.cross_attn.k"), params.compute, &shape);
            (i, (k, g.input(&format!("blocks.{i}.cross_attn.v"), params.compute, &shape)))
        })
        .collect();

    if is_first {
        x = g.cast(x, params.compute);
        x = patchify(&mut g, x, config.in_dim, [t, h, w]);
        x = Linears::plain(params).named(&mut g, "patch_embedding", x, config.dim);
        x = g.label(x, "patch_embedding");
    }
    let zero = modulation.zero(&mut g);
    let rope = rope::table(&mut g, config.head_dim(), [t, h, w], zero);
    for (i, text) in texts {
        let rows = modulation.block(&mut g, i);
        x = g.scope(&format!("blocks.{i}"), |g| {
            block::Block { config, recipe, params, batch, grid_rope: rope }.forward(g, x, rows, text)
        });
        g.label(x, &format!("blocks.{i}"));
    }
    if is_last {
        let rows = modulation.head(&mut g);
        let x = g.scope("head", |g| head(g, config, params, x, rows));
        let x = unpatchify(&mut g, x, config.out_dim, batch, [t, h, w]);
        g.output("velocity", x);
    } else {
        g.output("to.hidden", x);
    }
    g.finish()
}

/// `[b, c, T, H, W]` to rows of patches `[b*l, c*kt*kh*kw]`, the channel outermost within a patch.
fn patchify(g: &mut Graph, x: Value, channels: usize, [t, h, w]: [usize; 3]) -> Value {
    let b = g.dim(x, 0);
    let x = g.reshape(x, &[b, channels, t, PATCH[0], h, PATCH[1], w, PATCH[2]]);
    let x = g.transpose(x, &[0, 2, 4, 6, 1, 3, 5, 7]);
    g.reshape(x, &[b * t * h * w, channels * PATCH.iter().product::<usize>()])
}

/// Rows of patches `[b*l, kt*kh*kw*c]`, the channel innermost, back to `[b, c, T, H, W]`.
fn unpatchify(g: &mut Graph, x: Value, channels: usize, b: usize, [t, h, w]: [usize; 3]) -> Value {
    let x = g.reshape(x, &[b, t, h, w, PATCH[0], PATCH[1], PATCH[2], channels]);
    let x = g.transpose(x, &[0, 7, 1, 4, 2, 5, 3, 6]);
    g.reshape(x, &[b, channels, t * PATCH[0], h * PATCH[1], w * PATCH[2]])
}

/// Upstream `Head`: modulated LayerNorm and a linear, in f32. Gives `[b*l, kt*kh*kw*out_dim]`.
fn head(g: &mut Graph, config: &Config, params: Params<'_>, x: Value, [shift, scale]: [Value; 2]) -> Value {
    let x = g.cast(x, DType::F32);
    let x = attention::norm(g, "layer", x, scale, shift, config.eps);
    let out = config.out_dim * PATCH.iter().product::<usize>();
    let f32_linears = Linears::plain(params.in_type(DType::F32));
    let x = f32_linears.apply(g, "head", &linear::Input::Plain(x), out);
    g.label(x, "head")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_nearly_alike_and_leave_nothing_out() {
        let ends = |layers, count| {
            parts(layers, count).iter().map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(ends(30, 1), [(0, 30)]);
        assert_eq!(ends(40, 3), [(0, 13), (13, 26), (26, 40)]);
        assert_eq!(ends(2, 5), [(0, 1), (1, 2)]);
        assert_eq!(ends(0, 2), [(0, 0)]);
    }
}
