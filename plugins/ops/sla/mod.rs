//! `o = sparse_softmax(q k^T / sqrt(d)) v + proj_l(linear_attention(q, k, v))`: sparse-linear attention.
//!
//! SLA, arXiv:2509.24006; TurboDiffusion `SLA/core.py` (`SparseLinearAttention`).

use turbo_graph::{Graph, Value};

use crate::block_map::SIZES;
use crate::cases::sample_inputs;
use crate::common::attn::{Attention, Form};
use crate::common::sums::sums_of;
use crate::common::{attn_expand, attn_reference};
use crate::{
    AttrDef, AttrKind, Attrs, Case, Data, Dim, Dims, Op, Rng, Tensor, TensorDef, TensorMut, TensorRef, Tol,
    Ty,
};

const D: Dim = Dim::Div(&Dim::Axis("c"), &Dim::Attr("heads"));

/// `[batch * l, heads * d]`.
pub const ROWS: &[Dim] = &[Dim::Axis("m"), Dim::Axis("c")];
/// Query blocks of a batch entry.
pub const BLOCKS_Q: Dim =
    Dim::CeilDiv(&Dim::Div(&Dim::Axis("m"), &Dim::Attr("batch")), &Dim::Attr("block_q"));

/// Attributes of tiled attention.
pub const ATTRS: [AttrDef; 4] = [
    AttrDef { name: "batch", kind: AttrKind::Int, doc: "batch entries; rows are divided evenly among them" },
    AttrDef { name: "heads", kind: AttrKind::Int, doc: "attention heads" },
    AttrDef { name: "block_q", kind: AttrKind::Int, doc: "queries of a block" },
    AttrDef { name: "block_k", kind: AttrKind::Int, doc: "keys of a block" },
];

/// Inputs of sparse-linear attention.
pub const INPUTS: &[TensorDef] = &[
    TensorDef { name: "q", ty: Ty::T, dims: ROWS, doc: "queries" },
    TensorDef { name: "k", ty: Ty::T, dims: ROWS, doc: "keys" },
    TensorDef { name: "v", ty: Ty::T, dims: ROWS, doc: "values" },
    TensorDef {
        name: "lut",
        ty: Ty::I32,
        dims: &[Dim::Attr("batch"), Dim::Attr("heads"), BLOCKS_Q, Dim::Axis("keep")],
        doc: "kept key blocks, ascending, as TurboBlockMap gives them",
    },
    TensorDef { name: "proj_w", ty: Ty::F32, dims: &[D, D], doc: "weight of `proj_l`, shared by all heads" },
    TensorDef { name: "proj_b", ty: Ty::F32, dims: &[D], doc: "bias of `proj_l`" },
];

/// Output of self-attention.
pub const OUTPUTS: &[TensorDef] = &[TensorDef { name: "o", ty: Ty::T, dims: ROWS, doc: "attended values" }];

/// The op.
pub const OP: Op = Op {
    name: "TurboSla",
    version: 2,
    summary: "o = sparse_softmax(q k^T / sqrt(d)) v + proj_l(linear_attention(q, k, v))",
    doc: "The sparse branch is softmax attention over the kept key blocks. The linear branch covers all keys: \
          phi(q) (phi(k)^T v) / (1e-5 + phi(q) . sum phi(k)) with phi = softmax over the head's channels, of the keys \
          as they are. `proj_l` is applied to the linear branch alone.",
    attrs: &ATTRS,
    inputs: INPUTS,
    outputs: OUTPUTS,
    constraint: heads_and_batch_divide,
    reference: |attrs, inputs| reference(Form::Exact, attrs, inputs),
    cpu: |attrs, inputs, outputs| cpu(Form::Exact, attrs, inputs, outputs),
    expand: Some(|g, attrs, inputs| expand(Form::Exact, g, attrs, inputs)),
    sample: |case| sample(&OP, case),
    cases: || cases(|attrs| attrs, Tol::Rel(1e-5, "f32 arithmetic")),
};

/// The width is a whole number of heads, at least one.
pub fn heads_divide(attrs: &Attrs, dims: &Dims) -> Result<(), String> {
    let (c, heads) = (dims.get("c"), attrs.get_int("heads"));
    if c > 0 && c.is_multiple_of(heads) {
        return Ok(());
    }
    Err(format!("axis `c` is {c}, which {heads} heads do not divide"))
}

/// The width is a whole number of heads, and rows are a whole number of tokens for each batch entry, at least one.
pub fn heads_and_batch_divide(attrs: &Attrs, dims: &Dims) -> Result<(), String> {
    heads_divide(attrs, dims)?;
    let batch = attrs.get_int("batch");
    let whole = |rows: usize| rows > 0 && rows.is_multiple_of(batch);
    match dims.iter().find(|&(axis, rows)| ["m", "n"].contains(&axis) && !whole(rows)) {
        None => Ok(()),
        Some((axis, rows)) => {
            Err(format!("axis `{axis}` is {rows}, which a batch of {batch} does not divide into sequences"))
        }
    }
}

/// Both branches in f64; the last of seven inputs are the sums of keys, for forms that smooth them.
pub fn reference(form: Form, attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let (m, c) = (inputs[0].shape[0], inputs[0].shape[1]);
    let [b, heads, block_q, block_k] = ["batch", "heads", "block_q", "block_k"].map(|n| attrs.get_int(n));
    let (blocks, keep) = (inputs[3].shape[2], inputs[3].shape[3]);
    let mean = |batch, h| inputs.get(6).map(|sums| attn_reference::key_mean(sums, [heads, m / b], batch, h));
    let mut out = vec![0.0; m * c];
    for (batch, h) in (0..b).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let qkv = [0, 1, 2].map(|i| attn_reference::head(&inputs[i], [b, heads], batch, h));
        let kept = |block: usize| {
            let at = ((batch * heads + h) * blocks + block) * keep;
            inputs[3].as_i32()[at..at + keep].iter().map(|&i| i as usize).collect()
        };
        let linear = attn_reference::linear_branch(qkv.clone(), inputs[4].as_f64(), inputs[5].as_f64());
        let mut rows = attn_reference::attend(form, qkv, mean(batch, h), [block_q, block_k], kept);
        for (row, linear) in rows.iter_mut().zip(&linear) {
            row.iter_mut().zip(linear).for_each(|(o, l)| *o += l);
        }
        attn_reference::store(&mut out, &rows, [m / b, c], batch, h);
    }
    vec![Tensor::f64(&[m, c], out)]
}

/// Both branches in f32.
pub fn cpu(form: Form, attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [batch, heads, block_q, block_k] = ["batch", "heads", "block_q", "block_k"].map(|n| attrs.get_int(n));
    let (blocks, keep) = (inputs[3].shape[2], inputs[3].shape[3]);
    let (lut, key_blocks) = (inputs[3].i32(), (inputs[1].shape[0] / batch).div_ceil(block_k));
    let attention = Attention {
        form,
        qkv: [inputs[0], inputs[1], inputs[2]],
        key_sums: inputs.get(6).copied(),
        batch,
        heads,
        blocks: [block_q, block_k],
        proj: Some([inputs[4].f32(), inputs[5].f32()]),
    };
    attention.run(outputs[0].f32(), |head, block| {
        // A block map from elsewhere may hold anything: what is no block is left out.
        let row = lut[(head * blocks + block) * keep..][..keep].iter();
        row.filter_map(|&i| usize::try_from(i).ok().filter(|&i| i < key_blocks)).collect()
    });
}

/// Both branches in standard operators.
pub fn expand(form: Form, g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let [batch, heads, block_q, block_k] = ["batch", "heads", "block_q", "block_k"].map(|n| attrs.get_int(n));
    let dtype = g.dtype(inputs[0]);
    let qkv = [0, 1, 2].map(|i| attn_expand::heads(g, inputs[i], [batch, heads]));
    let key_blocks = g.dim(qkv[1], 2).div_ceil(block_k.max(1));
    let mask = attn_expand::mask(g, inputs[3], key_blocks);
    let mean = inputs.get(6).map(|&sums| attn_expand::key_mean(g, sums, heads, qkv[1]));
    let sparse = attn_expand::attend(g, form, qkv, mean, [block_q, block_k], Some(mask));
    let linear = attn_expand::linear_branch(g, qkv, inputs[4], inputs[5]);
    let o = g.add(sparse, linear);
    vec![attn_expand::join(g, o, dtype)]
}

/// Normal inputs, keys with an offset per channel, and a random block map.
pub fn sample(op: &Op, case: &Case) -> Vec<Tensor> {
    let mut tensors = sample_inputs(op, case);
    let mut rng = Rng::new(case.seed ^ 0xb10c);
    let c = case.dims.get("c");
    if let Data::F64(keys) = &mut tensors[1].data {
        let offset: Vec<f64> = (0..c).map(|_| 2.0 * rng.normal()).collect();
        keys.iter_mut().enumerate().for_each(|(i, k)| *k += offset[i % c]);
    }
    let [batch, block_k] = ["batch", "block_k"].map(|n| case.attrs.get_int(n));
    let l = case.dims.get("m") / batch;
    let key_blocks = l.div_ceil(block_k);
    let keep = case.dims.get("keep");
    if let [_, k, _, _, _, _, sums] = &mut tensors[..] {
        *sums = sums_of(k, l);
    }
    if let Some(Data::I32(lut)) = tensors.get_mut(3).map(|t| &mut t.data) {
        for row in lut.chunks_mut(keep.max(1)) {
            let mut all: Vec<i32> = (0..key_blocks as i32).collect();
            for i in (1..all.len()).rev() {
                all.swap(i, (rng.bits() % (i as u64 + 1)) as usize);
            }
            all.truncate(keep);
            all.sort_unstable();
            row.copy_from_slice(&all);
        }
    }
    tensors
}

/// Cases over [`SIZES`]; `with` adds an op's own attributes.
pub fn cases(with: impl Fn(Attrs) -> Attrs, tol: Tol) -> Vec<Case> {
    let case = |(name, [b, l, heads, d, block_q, block_k, keep]): (&str, [usize; 7])| Case {
        name: name.to_string(),
        attrs: with(
            Attrs::new().int("batch", b).int("heads", heads).int("block_q", block_q).int("block_k", block_k),
        ),
        dims: Dims::of(&[("m", b * l), ("c", heads * d), ("keep", keep)]),
        seed: 31,
        tol: vec![tol],
    };
    SIZES.map(case).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
