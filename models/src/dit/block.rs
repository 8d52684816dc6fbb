//! Upstream `WanAttentionBlock`: self-attention, cross-attention and feed-forward, each on a residual.

use turbo_graph::{DType, Graph, Value};

use super::attention;
use super::config::Config;
use super::linear::Linears;
use super::recipe::Recipe;
use crate::Params;

/// One transformer block; the graph's scope is the block's path.
pub(super) struct Block<'a> {
    pub config: &'a Config,
    pub recipe: &'a Recipe,
    pub params: Params<'a>,
    pub batch: usize,
    pub tokens: usize,
    pub grid_rope: (Value, Value),
}

/// Row `i` of modulation `[b, n, dim]` as `[b, dim]`.
pub(super) fn chunk(g: &mut Graph, e: Value, i: usize) -> Value {
    let (b, dim) = (g.dim(e, 0), g.dim(e, 2));
    let part = g.slice(e, 1, i, i + 1);
    g.reshape(part, &[b, dim])
}

impl Block<'_> {
    /// `x [b*l, dim]`, time projection `e0 [b, 6, dim]` and the text's keys and values to the next `x`.
    pub(super) fn forward(&self, g: &mut Graph, x: Value, e0: Value, text: (Value, Value)) -> Value {
        let dim = self.config.dim;
        let modulation = self.params.typed(g, &g.path("modulation"), &[1, 6, dim], DType::F32);
        let e = g.add(modulation, e0);
        let e: Vec<Value> = (0..6).map(|i| chunk(g, e, i)).collect();
        let linears = Linears::new(self.recipe, self.params);

        let input = self.modulated(g, &linears, x, e[0], e[1]);
        let x = g.scope("self_attn", |g| {
            let y = self.self_attention(g, &linears, &input);
            linears.residual(g, "o", &y, x, Some(e[2]))
        });

        let input = self.affine(g, &linears, x);
        let x = g.scope("cross_attn", |g| {
            let q = linears.apply(g, "q", &input, dim);
            let q = self.sequence(g, q);
            let q = attention::rms_norm(g, self.params, "norm_q", q, self.config.eps);
            let y = attention::dense(g, self.config.heads, q, text.0, text.1);
            let y = self.rows(g, y);
            let y = linears.input(g, y);
            linears.residual(g, "o", &y, x, None)
        });

        let input = self.modulated(g, &linears, x, e[3], e[4]);
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
        let [q, k, v] = ["q", "k", "v"].map(|leaf| {
            let y = linears.apply(g, leaf, input, self.config.dim);
            let y = g.label(y, leaf);
            self.sequence(g, y)
        });
        let q = attention::norm_rope(g, self.config, self.params, "norm_q", q, self.grid_rope);
        let q = g.label(q, "q_rope");
        let k = attention::norm_rope(g, self.config, self.params, "norm_k", k, self.grid_rope);
        let k = g.label(k, "k_rope");
        let y = attention::self_attention(g, self.config, self.recipe, self.params, q, k, v);
        let y = g.label(y, "attn");
        let y = self.rows(g, y);
        linears.input(g, y)
    }

    fn modulated(
        &self,
        g: &mut Graph,
        linears: &Linears<'_>,
        x: Value,
        shift: Value,
        scale: Value,
    ) -> super::linear::Input {
        let x = self.sequence(g, x);
        let scale = g.add_scalar(scale, 1.0);
        linears.norm_input(g, x, scale, shift, self.config.eps)
    }

    /// `norm3`, the affine norm before cross-attention; without weights upstream passes `x` on as it is.
    fn affine(&self, g: &mut Graph, linears: &Linears<'_>, x: Value) -> super::linear::Input {
        if !self.params.has(&g.path("norm3.weight")) {
            return linears.input(g, x);
        }
        let dim = self.config.dim;
        let x = self.sequence(g, x);
        let [scale, shift] = ["weight", "bias"].map(|leaf| {
            self.params.reshaped(g, &g.path(&format!("norm3.{leaf}")), &[dim], DType::F32, &[1, dim])
        });
        linears.norm_input(g, x, scale, shift, self.config.eps)
    }

    fn sequence(&self, g: &mut Graph, x: Value) -> Value {
        g.reshape(x, &[self.batch, self.tokens, self.config.dim])
    }

    fn rows(&self, g: &mut Graph, x: Value) -> Value {
        g.reshape(x, &[self.batch * self.tokens, self.config.dim])
    }
}
