//! Upstream `WanAttentionBlock`: self-attention, cross-attention and feed-forward, each on a residual.

use turbo_graph::{DType, Graph, Value};

use super::attention;
use super::config::Config;
use super::linear::Linears;
use super::modulation::BLOCK;
use super::recipe::Recipe;
use crate::Params;

/// One transformer block; the graph's scope is the block's path.
pub(super) struct Block<'a> {
    pub config: &'a Config,
    pub recipe: &'a Recipe,
    pub params: Params<'a>,
    pub batch: usize,
    pub grid_rope: (Value, Value),
}

impl Block<'_> {
    /// `x [b*l, dim]`, the block's rows of the modulation and the text's keys and values, each `[b*text_len, dim]`, to
    /// the next `x`.
    pub(super) fn forward(&self, g: &mut Graph, x: Value, e: [Value; BLOCK], text: (Value, Value)) -> Value {
        let dim = self.config.dim;
        let linears = Linears::new(self.recipe, self.params);

        let input = linears.norm_input(g, x, e[1], e[0], self.config.eps);
        let x = g.scope("self_attn", |g| {
            let y = self.self_attention(g, &linears, &input);
            linears.residual(g, "o", &y, x, Some(e[2]))
        });

        let input = self.affine(g, &linears, x);
        let x = g.scope("cross_attn", |g| {
            let q = linears.apply(g, "q", &input, dim);
            let q = attention::rms_norm(g, self.params, "norm_q", q, self.config.eps);
            let y = attention::dense(g, [self.batch, self.config.heads], [q, text.0, text.1]);
            let y = linears.input(g, y);
            linears.residual(g, "o", &y, x, None)
        });

        let input = linears.norm_input(g, x, e[4], e[3], self.config.eps);
        g.scope("ffn", |g| {
            let hidden = linears.gelu_input(g, "0", &input, self.config.ffn_dim);
            linears.residual(g, "2", &hidden, x, Some(e[5]))
        })
    }

    fn self_attention(
        &self,
        g: &mut Graph,
        linears: &Linears<'_>,
        input: &super::linear::Input,
    ) -> super::linear::Input {
        let [q, k, v] = linears.qkv(g, input, self.config.dim);
        let mut q = attention::norm_rope(g, self.config, self.params, "norm_q", q, self.grid_rope);
        q.rows = g.label(q.rows, "q_rope");
        let mut k = attention::norm_rope(g, self.config, self.params, "norm_k", k, self.grid_rope);
        k.rows = g.label(k.rows, "k_rope");
        let y = attention::self_attention(g, self.config, self.recipe, self.params, self.batch, [q, k], v);
        let y = g.label(y, "attn");
        linears.input(g, y)
    }

    /// `norm3`, the affine norm before cross-attention; without weights upstream passes `x` on as it is.
    fn affine(&self, g: &mut Graph, linears: &Linears<'_>, x: Value) -> super::linear::Input {
        if !self.params.has(&g.path("norm3.weight")) {
            return linears.input(g, x);
        }
        let dim = self.config.dim;
        let [scale, shift] = ["weight", "bias"].map(|leaf| {
            self.params.reshaped(g, &g.path(&format!("norm3.{leaf}")), &[dim], DType::F32, &[1, dim])
        });
        linears.norm_input(g, x, scale, shift, self.config.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Attention, Linear};
    use super::*;
    use crate::Weights;

    /// Any weight of a block whose widths are all 128.
    struct Square;

    impl Weights for Square {
        fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
            let (stem, leaf) = name.rsplit_once('.')?;
            match leaf {
                "int8_weight" | "fp8_weight" => Some((DType::I8, vec![128, 128])),
                "scale" => Some((DType::F32, vec![1, 1])),
                "weight" if !stem.contains("norm") => Some((DType::Bf16, vec![128, 128])),
                _ => Some((DType::F32, vec![128])),
            }
        }
    }

    /// To TensorRT a reshape between plugins is a copy: rows stay rows from one op to the next.
    #[test]
    fn only_the_modulation_is_reshaped() {
        let config = Config {
            dim: 128,
            ffn_dim: 128,
            heads: 1,
            layers: 1,
            in_dim: 16,
            out_dim: 16,
            text_len: 7,
            text_dim: 128,
            freq_dim: 128,
            eps: 1e-6,
            has_proj_l: true,
            quantized: false,
        };
        for linear in [Linear::W8a8, Linear::Fp8, Linear::Bf16] {
            for attention in [Attention::Dense, Attention::Sage, Attention::Sla, Attention::SageSla] {
                let recipe = Recipe { attention, linear, topk: 0.5, ..Recipe::default() };
                let params = Params::converted(&Square, DType::Bf16);
                let mut g = Graph::new("block");
                let x = g.input("x", DType::Bf16, &[300, 128]);
                let rows = super::super::modulation::Rows::input(&mut g, &config, 1);
                let text = ["k", "v"].map(|name| g.input(name, DType::Bf16, &[7, 128]));
                let zero = rows.zero(&mut g);
                let grid_rope = super::super::rope::table(&mut g, 128, [3, 10, 10], zero);
                let block = Block { config: &config, recipe: &recipe, params, batch: 1, grid_rope };
                let rows = rows.block(&mut g, 0);
                let y = g.scope("blocks.0", |g| block.forward(g, x, rows, (text[0], text[1])));
                g.output("y", y);
                let g = g.finish().unwrap();
                let reshaped = g.nodes().iter().filter(|node| node.op == "Reshape");
                let shapes: Vec<&[usize]> = reshaped.map(|node| g.shape(node.outputs[0])).collect();
                assert_eq!(shapes[0], [1, 1], "the zero of the rotary table");
                assert_eq!(shapes[1..], [[1, 128]; 6], "{linear:?} {attention:?}");
            }
        }
    }
}
