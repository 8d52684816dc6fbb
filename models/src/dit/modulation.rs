//! What the time of a step does to the network: shifts, scales and gates of every block and of the head.

use turbo_graph::{DType, Graph, Value};

use super::config::Config;
use super::linear::Linears;
use crate::Params;

/// Rows of a block, in upstream's order: shift, scale and gate of self-attention, then of the feed-forward network.
pub(super) const BLOCK: usize = 6;
/// Rows of the head: shift and scale.
const HEAD: usize = 2;

/// Input of the denoiser and output of the context.
pub(super) const NAME: &str = "modulation";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weights;

    /// Time layers and modulations of two blocks, 8 wide.
    struct Small;

    impl Weights for Small {
        fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
            let shape = match name {
                "time_embedding.0.weight" => vec![8, 4],
                "time_embedding.2.weight" => vec![8, 8],
                "time_projection.1.weight" => vec![48, 8],
                "time_projection.1.bias" => vec![48],
                "head.modulation" => vec![1, 2, 8],
                _ if name.ends_with(".modulation") => vec![1, 6, 8],
                _ => vec![8],
            };
            Some((DType::Bf16, shape))
        }
    }

    #[test]
    fn every_time_has_the_rows_of_all_blocks_and_of_the_head() {
        let config = Config {
            dim: 8,
            ffn_dim: 8,
            heads: 1,
            layers: 2,
            in_dim: 16,
            out_dim: 16,
            text_len: 1,
            text_dim: 8,
            freq_dim: 4,
            eps: 1e-6,
            has_proj_l: false,
            quantized: false,
        };
        for compute in [DType::F32, DType::Bf16] {
            let mut g = Graph::new("times");
            let times = g.input("times", DType::F32, &[4, 4]);
            let all = table(&mut g, &config, Params::new(&Small, compute), times);
            let rows = Rows::input(&mut g, &config, 1);
            let ends = [rows.block(&mut g, 0)[0], rows.block(&mut g, 1)[5], rows.head(&mut g)[1]];
            assert_eq!((g.dtype(all), g.shape(all)), (DType::F32, &[4, 14, 8][..]));
            assert_eq!(g.shape(rows.rows), [1, 14, 8]);
            assert!(ends.iter().all(|&row| g.shape(row) == [1, 8]));
            g.output(NAME, all);
            for (i, row) in ends.into_iter().enumerate() {
                g.output(&i.to_string(), row);
            }
            g.finish().unwrap();
        }
    }
}
