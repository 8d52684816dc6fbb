//! Which key blocks each query block attends to: the best by mean-pooled scores.
//!
//! TurboDiffusion `SLA/utils.py` (`get_block_map`); SLA, arXiv:2509.24006.

use rayon::prelude::*;
use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::attn_expand;
use crate::common::attn_reference::dot;
use crate::common::sums::{SUM_ROWS, pooled};
use crate::sla::{ATTRS, heads_divide};
use crate::{
    AttrDef, AttrKind, Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty,
};

/// Sums of rows as TurboNormRope gives them.
const SUMS: &[Dim] = &[Dim::Axis("b"), Dim::CeilDiv(&TOKENS, &Dim::Const(SUM_ROWS)), Dim::Axis("c")];
const TOKENS: Dim = Dim::Attr("tokens");

/// The op.
pub const OP: Op = Op {
    name: "TurboBlockMap",
    version: 3,
    summary: "lut = top-k of mean_pool(q) . mean_pool(k - mean(k)), ascending",
    doc: "Blocks are whole multiples of the 32 rows of a sum. Pools average the real rows of a ragged last block. Scores \
          are not scaled. Of equal scores the lower block wins.",
    attrs: &[
        AttrDef { name: "tokens", kind: AttrKind::Int, doc: "tokens of a sequence" },
        ATTRS[1],
        ATTRS[2],
        ATTRS[3],
        AttrDef { name: "keep", kind: AttrKind::Int, doc: "key blocks that each query block keeps" },
    ],
    inputs: &[
        TensorDef { name: "q_sums", ty: Ty::F32, dims: SUMS, doc: "sums of queries, of TurboNormRope" },
        TensorDef { name: "k_sums", ty: Ty::F32, dims: SUMS, doc: "sums of keys" },
    ],
    outputs: &[TensorDef {
        name: "lut",
        ty: Ty::I32,
        dims: &[
            Dim::Axis("b"),
            Dim::Attr("heads"),
            Dim::CeilDiv(&TOKENS, &Dim::Attr("block_q")),
            Dim::Attr("keep"),
        ],
        doc: "kept key blocks, ascending",
    }],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

fn constraint(attrs: &Attrs, dims: &Dims) -> Result<(), String> {
    heads_divide(attrs, dims)?;
    for name in ["block_q", "block_k"] {
        let block = attrs.get_int(name);
        if !block.is_multiple_of(SUM_ROWS) {
            return Err(format!("`{name}` is {block}, which is not a multiple of {SUM_ROWS}"));
        }
    }
    let blocks = attrs.get_int("tokens").div_ceil(attrs.get_int("block_k"));
    let keep = attrs.get_int("keep");
    if keep <= blocks { Ok(()) } else { Err(format!("`keep` is {keep}, there are {blocks} key blocks")) }
}

/// Indices of the `keep` largest scores, ascending; of equal ones the lower index.
fn best(scores: &[f64], keep: usize) -> Vec<i32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let larger = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if keep < order.len() {
        order.select_nth_unstable_by(keep, larger);
        order.truncate(keep);
    }
    order.sort_unstable();
    order.into_iter().map(|i| i as i32).collect()
}

/// Tokens, heads, query and key block, kept blocks.
fn sizes(attrs: &Attrs) -> [usize; 5] {
    ["tokens", "heads", "block_q", "block_k", "keep"].map(|name| attrs.get_int(name))
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let [tokens, heads, block_q, block_k, keep] = sizes(attrs);
    let (b, d) = (inputs[0].shape[0], inputs[0].shape[2] / heads);
    let mut lut = Vec::new();
    for (batch, h) in (0..b).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let [queries, keys] = [(0, block_q), (1, block_k)]
            .map(|(i, block)| pooled(inputs[i].as_f64(), &inputs[i].shape, [batch, h * d, d], tokens, block));
        let mean = pooled(inputs[1].as_f64(), &inputs[1].shape, [batch, h * d, d], tokens, usize::MAX);
        let smooth = |key: &Vec<f64>| key.iter().zip(&mean[0]).map(|(key, mean)| key - mean).collect();
        let keys: Vec<Vec<f64>> = keys.iter().map(smooth).collect();
        for query in &queries {
            let scores: Vec<f64> = keys.iter().map(|key| dot(query, key)).collect();
            lut.extend(best(&scores, keep));
        }
    }
    vec![Tensor::i32(&[b, heads, tokens.div_ceil(block_q), keep], lut)]
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [tokens, heads, block_q, block_k, keep] = sizes(attrs);
    let d = inputs[0].shape[2] / heads;
    let size = tokens.div_ceil(block_q) * keep;
    outputs[0].i32().par_chunks_mut(size.max(1)).enumerate().for_each(|(head, lut)| {
        let place = [head / heads, head % heads * d, d];
        let pooled = |i: usize, block| pooled(inputs[i].f32(), inputs[i].shape, place, tokens, block);
        let (queries, mut keys) = (pooled(0, block_q), pooled(1, block_k));
        let mean = pooled(1, usize::MAX);
        keys.iter_mut().for_each(|key| key.iter_mut().zip(&mean[0]).for_each(|(k, m)| *k -= m));
        for (query, lut) in queries.iter().zip(lut.chunks_exact_mut(keep)) {
            let scores: Vec<f64> = keys.iter().map(|key| dot(query, key)).collect();
            lut.copy_from_slice(&best(&scores, keep));
        }
    });
}

/// Means of blocks of rows, `[b, h, blocks, d]`, from their sums `[b, h, sums, d]`.
fn pool(g: &mut Graph, sums: Value, tokens: usize, block: usize) -> Value {
    let parts = attn_expand::blocks(g, sums, block / SUM_ROWS);
    let [b, h, count, _, d] = [0, 1, 2, 3, 4].map(|i| g.dim(parts, i));
    let sum = g.reduce_sum(parts, &[3]);
    let sum = g.reshape(sum, &[b, h, count, d]);
    let sizes: Vec<f32> = (0..count).map(|i| block.min(tokens - i * block) as f32).collect();
    let sizes = g.constant_f32(&[count, 1], &sizes);
    g.div(sum, sizes)
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let [tokens, heads, block_q, block_k, keep] = sizes(attrs);
    let [q, k] = [0, 1].map(|i| {
        let [b, count, c] = [0, 1, 2].map(|axis| g.dim(inputs[i], axis));
        let rows = g.reshape(inputs[i], &[b * count, c]);
        attn_expand::heads(g, rows, [b, heads])
    });
    let mean = g.reduce_sum(k, &[2]);
    let mean = g.mul_scalar(mean, 1.0 / tokens as f64);
    let q = pool(g, q, tokens, block_q);
    let k = pool(g, k, tokens, block_k);
    let k = g.sub(k, mean);
    let k = g.transpose(k, &[0, 1, 3, 2]);
    let scores = g.matmul(q, k);
    let (_, indices) = g.top_k(scores, keep);
    // Ascending: TopK of the negated indices, largest first.
    let negated = g.cast(indices, DType::F32);
    let negated = g.mul_scalar(negated, -1.0);
    let (sorted, _) = g.top_k(negated, keep);
    let sorted = g.mul_scalar(sorted, -1.0);
    vec![g.cast(sorted, DType::I32)]
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

/// Sizes that the attention ops with a block map are tested on: batch, tokens, heads, head size, tiling, kept.
pub const SIZES: [(&str, [usize; 7]); 8] = [
    ("one token", [1, 1, 1, 8, 128, 64, 1]),
    ("less than a block", [1, 40, 2, 16, 128, 64, 1]),
    ("ragged 128x64", [1, 450, 2, 32, 128, 64, 2]),
    ("ragged 64x128", [1, 450, 2, 32, 64, 128, 1]),
    ("batch", [2, 200, 1, 16, 128, 64, 3]),
    ("all kept", [1, 300, 1, 128, 64, 128, 3]),
    ("demo", [1, 819, 2, 128, 128, 64, 3]),
    ("odd heads", [2, 200, 3, 13, 128, 64, 2]),
];

fn cases() -> Vec<Case> {
    let case = |(name, [b, l, heads, d, block_q, block_k, keep]): (&str, [usize; 7])| Case {
        name: name.to_string(),
        attrs: Attrs::new()
            .int("tokens", l)
            .int("heads", heads)
            .int("block_q", block_q)
            .int("block_k", block_k)
            .int("keep", keep),
        dims: Dims::of(&[("b", b), ("c", heads * d)]),
        seed: 21,
        tol: vec![Tol::Exact],
    };
    SIZES.map(case).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }

    #[test]
    fn of_equal_scores_the_lower_block_wins() {
        assert_eq!(super::best(&[1.0, 3.0, 3.0, 3.0, 0.0], 2), [1, 2]);
    }
}
