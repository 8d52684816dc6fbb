//! `o = softmax(q k^T / sqrt(d)) v`: dense attention without mask.
//!
//! Attention Is All You Need, arXiv:1706.03762.

use turbo_graph::{Graph, Value};

use crate::cases::sample_inputs;
use crate::common::attn::{Attention, Form};
use crate::common::{attn_expand, attn_reference};
use crate::sla::{ATTRS, OUTPUTS, ROWS, heads_and_batch_divide};
use crate::{Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty};

const KEYS: &[Dim] = &[Dim::Axis("n"), Dim::Axis("c")];

/// Inputs of dense attention.
pub const INPUTS: &[TensorDef] = &[
    TensorDef { name: "q", ty: Ty::T, dims: ROWS, doc: "queries" },
    TensorDef { name: "k", ty: Ty::T, dims: KEYS, doc: "keys" },
    TensorDef { name: "v", ty: Ty::T, dims: KEYS, doc: "values" },
];

/// Blocks by which the work is divided where the op has none of its own.
const BLOCKS: [usize; 2] = [64, 128];

/// The op.
pub const OP: Op = Op {
    name: "TurboAttention",
    version: 2,
    summary: "o = softmax(q k^T / sqrt(d)) v",
    doc: "No mask: every query attends to every key of its batch entry.",
    attrs: &[ATTRS[0], ATTRS[1]],
    inputs: INPUTS,
    outputs: OUTPUTS,
    constraint: heads_and_batch_divide,
    reference: |attrs, inputs| reference(Form::Exact, BLOCKS, attrs, inputs),
    cpu: |attrs, inputs, outputs| cpu(Form::Exact, BLOCKS, attrs, inputs, outputs),
    expand: Some(|g, attrs, inputs| expand(Form::Exact, BLOCKS, g, attrs, inputs)),
    sample: |case| sample_inputs(&OP, case),
    cases: || cases(|attrs, _| attrs, Tol::Rel(1e-5, "f32 arithmetic")),
};

/// Dense attention in f64; the last of four inputs are the sums of keys, for forms that smooth them.
pub fn reference(form: Form, blocks: [usize; 2], attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let (m, c, b, heads) =
        (inputs[0].shape[0], inputs[0].shape[1], attrs.get_int("batch"), attrs.get_int("heads"));
    let (l, s) = (m / b, inputs[1].shape[0] / b);
    let mut out = vec![0.0; m * c];
    for (batch, h) in (0..b).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let qkv = [0, 1, 2].map(|i| attn_reference::head(&inputs[i], [b, heads], batch, h));
        let mean = inputs.get(3).map(|sums| attn_reference::key_mean(sums, [heads, s], batch, h));
        let rows = attn_reference::attend(form, qkv, mean, blocks, |_| (0..s.div_ceil(blocks[1])).collect());
        attn_reference::store(&mut out, &rows, [l, c], batch, h);
    }
    vec![Tensor::f64(&[m, c], out)]
}

/// Dense attention in f32.
pub fn cpu(
    form: Form,
    blocks: [usize; 2],
    attrs: &Attrs,
    inputs: &[TensorRef<'_>],
    outputs: &mut [TensorMut<'_>],
) {
    let [batch, heads] = ["batch", "heads"].map(|name| attrs.get_int(name));
    let s = inputs[1].shape[0] / batch;
    let all: Vec<usize> = (0..s.div_ceil(blocks[1])).collect();
    let qkv = [inputs[0], inputs[1], inputs[2]];
    let key_sums = inputs.get(3).copied();
    let attention = Attention { form, qkv, key_sums, batch, heads, blocks, proj: None };
    attention.run(outputs[0].f32(), |_, _| all.clone());
}

/// Dense attention in standard operators.
pub fn expand(form: Form, blocks: [usize; 2], g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let dtype = g.dtype(inputs[0]);
    let split = ["batch", "heads"].map(|name| attrs.get_int(name));
    let qkv = [0, 1, 2].map(|i| attn_expand::heads(g, inputs[i], split));
    let mean = inputs.get(3).map(|&sums| attn_expand::key_mean(g, sums, split[1], qkv[1]));
    let o = attn_expand::attend(g, form, qkv, mean, blocks, None);
    vec![attn_expand::join(g, o, dtype)]
}

/// Batch, tokens, keys, heads and head size of the cases; `with` adds an op's own attributes, given the keys' number.
pub fn cases(with: impl Fn(Attrs, usize) -> Attrs, tol: Tol) -> Vec<Case> {
    let sizes = [
        ("one of each", [1, 1, 1, 1, 4]),
        ("cross", [2, 130, 77, 2, 16]),
        ("more keys", [1, 33, 512, 1, 64]),
        ("large", [1, 300, 300, 2, 128]),
    ];
    let case = |(name, [b, l, s, heads, d]): (&str, [usize; 5])| Case {
        name: name.to_string(),
        attrs: with(Attrs::new().int("batch", b).int("heads", heads), s),
        dims: Dims::of(&[("m", b * l), ("n", b * s), ("c", heads * d)]),
        seed: 41,
        tol: vec![tol],
    };
    sizes.map(case).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
