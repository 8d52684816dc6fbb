//! The one place that decides how attention is computed, and the norms around it.

use turbo_graph::{DType, Graph, Value};
use turbo_ops::Attrs;

use super::config::Config;
use super::recipe::{Attention, Recipe, keep_blocks};
use crate::Params;

/// Queries or keys.
#[derive(Clone, Copy)]
pub(super) struct Summed {
    /// `[b * l, c]`.
    pub(super) rows: Value,
    /// Sums of 32 rows `[b, ceil(l / 32), c]`, f32.
    pub(super) sums: Value,
}

/// `norm(x) * scale + shift` of rows `[m, c]`; `scale` and `shift` f32 `[g, c]`, a row for each m/g rows.
pub(super) fn norm(g: &mut Graph, kind: &str, x: Value, scale: Value, shift: Value, eps: f32) -> Value {
    let attrs = Attrs::new().choice("kind", kind).float("eps", eps);
    turbo_ops::emit(g, "TurboNorm", attrs, &[x, scale, shift])[0]
}

/// Upstream `WanRMSNorm` of rows `[m, c]` over the whole width (all heads), weight `leaf.weight` of the current scope.
pub(super) fn rms_norm(g: &mut Graph, params: Params<'_>, leaf: &str, x: Value, eps: f32) -> Value {
    let c = g.dim(x, 1);
    let weight = params.reshaped(g, &g.path(&format!("{leaf}.weight")), &[c], DType::F32, &[1, c]);
    let zero = g.constant_f32(&[1, c], &vec![0.0; c]);
    norm(g, "rms", x, weight, zero, eps)
}

/// RMS norm of rows `[b * l, c]` over the whole width, then rotary embedding of interleaved pairs within each head; and
/// the sums of 32 rows.
pub(super) fn norm_rope(
    g: &mut Graph,
    config: &Config,
    params: Params<'_>,
    leaf: &str,
    x: Value,
    (cos, sin): (Value, Value),
) -> Summed {
    let weight = params.typed(g, &g.path(&format!("{leaf}.weight")), &[config.dim], DType::F32);
    let attrs = Attrs::new().int("heads", config.heads).float("eps", config.eps);
    let out = turbo_ops::emit(g, "TurboNormRope", attrs, &[x, weight, cos, sin]);
    Summed { rows: out[0], sums: out[1] }
}

/// Dense softmax attention of `q [b * l, c]` with `k` and `v [b * s, c]`.
pub(super) fn dense(g: &mut Graph, [batch, heads]: [usize; 2], qkv: [Value; 3]) -> Value {
    let attrs = Attrs::new().int("batch", batch).int("heads", heads);
    turbo_ops::emit(g, "TurboAttention", attrs, &qkv)[0]
}

/// Self-attention as the recipe says; `q` and `k` after norm and rotary embedding, all rows `[b * l, c]`.
pub(super) fn self_attention(
    g: &mut Graph,
    config: &Config,
    recipe: &Recipe,
    params: Params<'_>,
    batch: usize,
    [q, k]: [Summed; 2],
    v: Value,
) -> Value {
    let blocks = Attrs::new()
        .int("heads", config.heads)
        .int("block_q", recipe.tiling.block_q)
        .int("block_k", recipe.tiling.block_k);
    let tiles = blocks.clone().int("batch", batch);
    let (sparse, attrs, sums) = match recipe.attention {
        Attention::Dense => return dense(g, [batch, config.heads], [q.rows, k.rows, v]),
        Attention::Sage => {
            let attrs = tiles.choice("pv", recipe.pv.word());
            return turbo_ops::emit(g, "TurboSageAttention", attrs, &[q.rows, k.rows, v, k.sums])[0];
        }
        Attention::Sla => ("TurboSla", tiles, None),
        Attention::SageSla => ("TurboSageSla", tiles.choice("pv", recipe.pv.word()), Some(k.sums)),
    };
    let tokens = g.dim(q.rows, 0) / batch.max(1);
    let keep = keep_blocks(recipe.topk, tokens, recipe.tiling.block_k);
    if keep == 0 {
        let blocks = tokens.div_ceil(recipe.tiling.block_k.max(1));
        g.fail("attention", format!("top-k {} of {blocks} key blocks keeps none", recipe.topk));
    }
    let kept = blocks.int("tokens", tokens).int("keep", keep.max(1));
    let lut = turbo_ops::emit(g, "TurboBlockMap", kept, &[q.sums, k.sums])[0];
    let lut = g.label(lut, "block_map");
    let d = config.head_dim();
    // proj_l stays f32 in every recipe, as upstream creates it.
    let proj = |g: &mut Graph, leaf: &str, shape: &[usize]| {
        let path = g.path(&format!("attn_op.local_attn.proj_l.{leaf}"));
        params.typed(g, &path, shape, DType::F32)
    };
    let weight = proj(g, "weight", &[d, d]);
    let bias = proj(g, "bias", &[d]);
    let inputs: Vec<Value> = [q.rows, k.rows, v, lut, weight, bias].into_iter().chain(sums).collect();
    turbo_ops::emit(g, sparse, attrs, &inputs)[0]
}
