//! The one place that decides how attention is computed, and the norms around it.

use turbo_graph::{DType, Graph, Value};
use turbo_ops::Attrs;

use super::config::Config;
use super::recipe::{Attention, Recipe, keep_blocks};
use crate::Params;

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

/// RMS norm of rows `[b * l, c]` over the whole width, then rotary embedding of interleaved pairs within each head.
pub(super) fn norm_rope(
    g: &mut Graph,
    config: &Config,
    params: Params<'_>,
    leaf: &str,
    x: Value,
    (cos, sin): (Value, Value),
) -> Value {
    let weight = params.typed(g, &g.path(&format!("{leaf}.weight")), &[config.dim], DType::F32);
    let attrs = Attrs::new().int("heads", config.heads).float("eps", config.eps);
    turbo_ops::emit(g, "TurboNormRope", attrs, &[x, weight, cos, sin])[0]
}

/// Dense softmax attention of `q [b * l, c]` with `k` and `v [b * s, c]`.
pub(super) fn dense(g: &mut Graph, [batch, heads]: [usize; 2], qkv: [Value; 3]) -> Value {
    let attrs = Attrs::new().int("batch", batch).int("heads", heads);
    turbo_ops::emit(g, "TurboAttention", attrs, &qkv)[0]
}

/// Self-attention as the recipe says; `q` and `k` after norm and rotary embedding, all `[b * l, c]`.
pub(super) fn self_attention(
    g: &mut Graph,
    config: &Config,
    recipe: &Recipe,
    params: Params<'_>,
    batch: usize,
    [q, k, v]: [Value; 3],
) -> Value {
    let tiles = Attrs::new()
        .int("batch", batch)
        .int("heads", config.heads)
        .int("block_q", recipe.tiling.block_q)
        .int("block_k", recipe.tiling.block_k);
    let sparse = match recipe.attention {
        Attention::Dense => return dense(g, [batch, config.heads], [q, k, v]),
        Attention::Sage => {
            let attrs = tiles.choice("pv", recipe.pv.word());
            return turbo_ops::emit(g, "TurboSageAttention", attrs, &[q, k, v])[0];
        }
        Attention::Sla => ("TurboSla", tiles.clone()),
        Attention::SageSla => ("TurboSageSla", tiles.clone().choice("pv", recipe.pv.word())),
    };
    let tokens = g.dim(q, 0) / batch.max(1);
    let keep = keep_blocks(recipe.topk, tokens, recipe.tiling.block_k);
    if keep == 0 {
        let blocks = tokens.div_ceil(recipe.tiling.block_k.max(1));
        g.fail("attention", format!("top-k {} of {blocks} key blocks keeps none", recipe.topk));
    }
    let lut = turbo_ops::emit(g, "TurboBlockMap", tiles.int("keep", keep.max(1)), &[q, k])[0];
    let lut = g.label(lut, "block_map");
    let d = config.head_dim();
    // proj_l stays f32 in every recipe, as upstream creates it.
    let proj = |g: &mut Graph, leaf: &str, shape: &[usize]| {
        let path = g.path(&format!("attn_op.local_attn.proj_l.{leaf}"));
        params.typed(g, &path, shape, DType::F32)
    };
    let weight = proj(g, "weight", &[d, d]);
    let bias = proj(g, "bias", &[d]);
    turbo_ops::emit(g, sparse.0, sparse.1, &[q, k, v, lut, weight, bias])[0]
}
