//! Which key blocks each query block attends to: the best by mean-pooled scores.
//!
//! TurboDiffusion `SLA/utils.py` (`get_block_map`); SLA, arXiv:2509.24006.

use rayon::prelude::*;
use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::attn_pack::Rows;
use crate::common::attn_reference::dot;
use crate::common::{attn_expand, attn_reference};
use crate::sla::ATTRS;
use crate::{
    AttrDef, AttrKind, Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty,
};

/// `[batch * l, heads * d]`.
pub const ROWS: &[Dim] = &[Dim::Axis("m"), Dim::Axis("c")];
/// Query blocks of a batch entry.
pub const BLOCKS_Q: Dim =
    Dim::CeilDiv(&Dim::Div(&Dim::Axis("m"), &Dim::Attr("batch")), &Dim::Attr("block_q"));

/// The op.
pub const OP: Op = Op {
    name: "TurboBlockMap",
    version: 2,
    summary: "lut = top-k of mean_pool(q) . mean_pool(k - mean(k)), ascending",
    doc: "Pools average the real rows of a ragged last block. Scores are not scaled. Of equal scores the lower block \
          wins.",
    attrs: &[
        ATTRS[0],
        ATTRS[1],
        ATTRS[2],
        ATTRS[3],
        AttrDef { name: "keep", kind: AttrKind::Int, doc: "key blocks that each query block keeps" },
    ],
    inputs: &[
        TensorDef { name: "q", ty: Ty::T, dims: ROWS, doc: "queries" },
        TensorDef { name: "k", ty: Ty::T, dims: ROWS, doc: "keys" },
    ],
    outputs: &[TensorDef {
        name: "lut",
        ty: Ty::I32,
        dims: &[Dim::Attr("batch"), Dim::Attr("heads"), BLOCKS_Q, Dim::Attr("keep")],
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
    heads_and_batch_divide(attrs, dims)?;
    let blocks = (dims.get("m") / attrs.get_int("batch")).div_ceil(attrs.get_int("block_k"));
    let keep = attrs.get_int("keep");
    if keep <= blocks { Ok(()) } else { Err(format!("`keep` is {keep}, there are {blocks} key blocks")) }
}

/// The width is a whole number of heads, and rows are a whole number of tokens for each batch entry, at least one.
pub fn heads_and_batch_divide(attrs: &Attrs, dims: &Dims) -> Result<(), String> {
    let (c, heads, batch) = (dims.get("c"), attrs.get_int("heads"), attrs.get_int("batch"));
    if c == 0 || !c.is_multiple_of(heads) {
        return Err(format!("axis `c` is {c}, which {heads} heads do not divide"));
    }
    let whole = |rows: usize| rows > 0 && rows.is_multiple_of(batch);
    match dims.iter().find(|&(axis, rows)| ["m", "n"].contains(&axis) && !whole(rows)) {
        None => Ok(()),
        Some((axis, rows)) => {
            Err(format!("axis `{axis}` is {rows}, which a batch of {batch} does not divide into sequences"))
        }
    }
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

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let [b, heads, block_q, block_k, keep] =
        ["batch", "heads", "block_q", "block_k", "keep"].map(|n| attrs.get_int(n));
    let l = inputs[0].shape[0] / b;
    let mut lut = Vec::new();
    for (batch, h) in (0..b).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let q = attn_reference::head(&inputs[0], [b, heads], batch, h);
        let mut k = attn_reference::head(&inputs[1], [b, heads], batch, h);
        let mean = attn_reference::mean(&k);
        k.iter_mut().for_each(|row| row.iter_mut().zip(&mean).for_each(|(k, m)| *k -= m));
        let keys: Vec<Vec<f64>> = k.chunks(block_k).map(attn_reference::mean).collect();
        for block in q.chunks(block_q) {
            let pooled = attn_reference::mean(block);
            let scores: Vec<f64> = keys.iter().map(|k| dot(&pooled, k)).collect();
            lut.extend(best(&scores, keep));
        }
    }
    vec![Tensor::i32(&[b, heads, l.div_ceil(block_q), keep], lut)]
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [b, heads, block_q, block_k, keep] =
        ["batch", "heads", "block_q", "block_k", "keep"].map(|n| attrs.get_int(n));
    let blocks_q = (inputs[0].shape[0] / b).div_ceil(block_q);
    outputs[0].i32().par_chunks_mut((blocks_q * keep).max(1)).enumerate().for_each(|(head, lut)| {
        let queries = pooled(Rows::new(&inputs[0], [b, heads], head), block_q, false);
        let keys = pooled(Rows::new(&inputs[1], [b, heads], head), block_k, true);
        for (query, lut) in queries.iter().zip(lut.chunks_exact_mut(keep)) {
            let scores: Vec<f64> = keys.iter().map(|key| dot(query, key)).collect();
            lut.copy_from_slice(&best(&scores, keep));
        }
    });
}

/// Means of blocks of rows; `smooth` subtracts the mean of all rows.
fn pooled(rows: Rows<'_>, block: usize, smooth: bool) -> Vec<Vec<f64>> {
    let starts = (0..rows.count).step_by(block);
    let sums: Vec<Vec<f64>> = starts.clone().map(|first| rows.sum(first, block)).collect();
    let mut center = vec![0.0; rows.d];
    if smooth {
        for sum in &sums {
            center.iter_mut().zip(sum).for_each(|(c, s)| *c += s / rows.count as f64);
        }
    }
    let mean = |(sum, first): (Vec<f64>, usize)| {
        let size = block.min(rows.count - first) as f64;
        sum.iter().zip(&center).map(|(s, c)| s / size - c).collect()
    };
    sums.into_iter().zip(starts).map(mean).collect()
}

/// Means of blocks of rows, `[b, h, blocks, d]`.
fn pool(g: &mut Graph, x: Value, block: usize) -> Value {
    let l = g.dim(x, 2);
    let tiles = attn_expand::blocks(g, x, block);
    let [b, h, count, _, d] = [0, 1, 2, 3, 4].map(|i| g.dim(tiles, i));
    let sum = g.reduce_sum(tiles, &[3]);
    let sum = g.reshape(sum, &[b, h, count, d]);
    let sizes: Vec<f32> = (0..count).map(|i| block.min(l - i * block) as f32).collect();
    let sizes = g.constant_f32(&[count, 1], &sizes);
    g.div(sum, sizes)
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let [b, heads, block_q, block_k, keep] =
        ["batch", "heads", "block_q", "block_k", "keep"].map(|n| attrs.get_int(n));
    let [q, k] = [0, 1].map(|i| attn_expand::heads(g, inputs[i], [b, heads]));
    let mean = g.reduce_mean(k, &[2]);
    let k = g.sub(k, mean);
    let q = pool(g, q, block_q);
    let k = pool(g, k, block_k);
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
            .int("batch", b)
            .int("heads", heads)
            .int("block_q", block_q)
            .int("block_k", block_k)
            .int("keep", keep),
        dims: Dims::of(&[("m", b * l), ("c", heads * d)]),
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
