//! What the time of a step does to the network: shifts, scales and gates of every block and of the head.

use turbo_graph::{DType, Graph, Value};

use super::config::Config;
use super::linear::Linears;
use crate::Params;

/// Rows of a block, in upstream's order: shift, scale and gate of self-attention, then of the feed-forward network.
const BLOCK: usize = 6;
/// Rows of the head: shift and scale.
const HEAD: usize = 2;

/// Input of the denoiser and output of the context.
const NAME: &str = "modulation";

fn rows(config: &Config) -> usize {
    config.layers * BLOCK + HEAD
}

/// The rows of all blocks and of the head at `times [r, freq_dim]`, `[r, 6 * layers + 2, dim]`, in f32 also where the
/// network is bf16. Scales have their 1.
///
/// Upstream computes them in every step (`WanModel.forward`, `WanAttentionBlock.forward`, `Head.forward`).
pub(super) fn table(g: &mut Graph, config: &Config, params: Params<'_>, times: Value) -> Value {
    let f32_linears = Linears::plain(params.in_type(DType::F32));
    let (r, dim) = (g.dim(times, 0), config.dim);
    let hidden = f32_linears.named(g, "time_embedding.0", times, dim);
    let hidden = g.silu(hidden);
    let e = f32_linears.named(g, "time_embedding.2", hidden, dim);
    let e = g.label(e, "time_embedding");
    let hidden = g.silu(e);
    let e0 = f32_linears.named(g, "time_projection.1", hidden, BLOCK * dim);
    let e0 = g.reshape(e0, &[r, BLOCK, dim]);
    let e0 = g.label(e0, "time_projection");

    let is_scale = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0];
    let ones = g.constant_f32(&[1, BLOCK, 1], &is_scale);
    let mut parts: Vec<Value> = (0..config.layers)
        .map(|i| {
            let own = params.typed(g, &format!("blocks.{i}.modulation"), &[1, BLOCK, dim], DType::F32);
            let sum = g.add(own, e0);
            g.add(sum, ones)
        })
        .collect();
    let own = params.typed(g, "head.modulation", &[1, HEAD, dim], DType::F32);
    let e = g.reshape(e, &[r, 1, dim]);
    let sum = g.add(own, e);
    let ones = g.constant_f32(&[1, HEAD, 1], &is_scale[..HEAD]);
    parts.push(g.add(sum, ones));
    g.concat(&parts, 1)
}

/// The rows of one step, `[b, 6 * layers + 2, dim]`.
pub(super) struct Rows {
    rows: Value,
    layers: usize,
}

impl Rows {
    /// The denoiser's input.
    pub(super) fn input(g: &mut Graph, config: &Config, batch: usize) -> Rows {
        let rows = g.input(NAME, DType::F32, &[batch, rows(config), config.dim]);
        Rows { rows, layers: config.layers }
    }

    /// `[b, dim]`.
    fn row(&self, g: &mut Graph, i: usize) -> Value {
        let (b, dim) = (g.dim(self.rows, 0), g.dim(self.rows, 2));
        let row = g.slice(self.rows, 1, i, i + 1);
        g.reshape(row, &[b, dim])
    }

    /// The rows of a block, each `[b, dim]`.
    pub(super) fn block(&self, g: &mut Graph, block: usize) -> [Value; BLOCK] {
        std::array::from_fn(|i| self.row(g, block * BLOCK + i))
    }

    /// Shift and scale of the head, each `[b, dim]`.
    pub(super) fn head(&self, g: &mut Graph) -> [Value; HEAD] {
        std::array::from_fn(|i| self.row(g, self.layers * BLOCK + i))
    }

    /// A zero `[1, 1]` that no compiler knows to be one.
    pub(super) fn zero(&self, g: &mut Graph) -> Value {
        let first = (0..3).fold(self.rows, |x, axis| g.slice(x, axis, 0, 1));
        let first = g.reshape(first, &[1, 1]);
        g.mul_scalar(first, 0.0)
    }
}
