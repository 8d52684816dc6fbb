//! `y = norm(x) * scale + shift`: LayerNorm or RMSNorm over the last axis, then modulation or affine weights.

use rayon::prelude::*;
use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::norm;
use crate::{
    AttrDef, AttrKind, Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty,
};

const B: Dim = Dim::Axis("b");
const L: Dim = Dim::Axis("l");
const C: Dim = Dim::Axis("c");
const G: Dim = Dim::Axis("g");

/// Attributes of the norm ops.
pub const ATTRS: &[AttrDef] = &[
    AttrDef { name: "kind", kind: AttrKind::Choice(&["layer", "rms"]), doc: "subtract the mean, or not" },
    AttrDef { name: "eps", kind: AttrKind::Float, doc: "added to the variance or mean square" },
];

/// Inputs of the norm ops.
pub const INPUTS: &[TensorDef] = &[
    TensorDef { name: "x", ty: Ty::T, dims: &[B, L, C], doc: "tokens" },
    TensorDef {
        name: "scale",
        ty: Ty::F32,
        dims: &[G, C],
        doc: "factor; one row for all, or one per batch entry",
    },
    TensorDef { name: "shift", ty: Ty::F32, dims: &[G, C], doc: "summand, as `scale`" },
];

/// The op.
pub const OP: Op = Op {
    name: "TurboNorm",
    version: 1,
    summary: "y = norm(x) * scale + shift",
    doc: "`kind` layer: (x - mean) / sqrt(variance + eps); rms: x / sqrt(mean square + eps); over the last axis, in \
          f32 or better. Wan's modulation passes 1 + scale. LayerNorm: arXiv:1607.06450; RMSNorm: arXiv:1910.07467.",
    attrs: ATTRS,
    inputs: INPUTS,
    outputs: &[TensorDef { name: "y", ty: Ty::T, dims: &[B, L, C], doc: "normalised tokens" }],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// `g` is 1 or `b`.
pub fn constraint(_: &Attrs, dims: &Dims) -> Result<(), String> {
    let (g, b) = (dims.get("g"), dims.get("b"));
    if g == 1 || g == b { Ok(()) } else { Err(format!("axis `g` must be 1 or the batch {b}, found {g}")) }
}

/// The norm in f64, `[b, l, c]` flattened.
pub fn reference_norm(attrs: &Attrs, inputs: &[Tensor]) -> Vec<f64> {
    let [b, l, c] = [0, 1, 2].map(|i| inputs[0].shape[i]);
    let group = |batch: usize| if inputs[1].shape[0] == b { batch } else { 0 };
    let layer = attrs.get_choice("kind") == "layer";
    (0..b * l)
        .flat_map(|row| {
            let at = group(row / l.max(1)) * c;
            let (scale, shift) = (&inputs[1].as_f64()[at..at + c], &inputs[2].as_f64()[at..at + c]);
            norm::reference_row(
                layer,
                attrs.get_float("eps"),
                &inputs[0].as_f64()[row * c..][..c],
                scale,
                shift,
            )
        })
        .collect()
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    vec![Tensor::f64(&inputs[0].shape, reference_norm(attrs, inputs))]
}

/// The modulation rows of token `row`.
pub fn modulation<'a>(inputs: &[TensorRef<'a>], row: usize) -> (&'a [f32], &'a [f32]) {
    let [b, l, c] = [0, 1, 2].map(|i| inputs[0].shape[i]);
    let at = if inputs[1].shape[0] == b { row / l.max(1) * c } else { 0 };
    (&inputs[1].f32()[at..at + c], &inputs[2].f32()[at..at + c])
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let c = inputs[0].shape[2];
    if c == 0 {
        return;
    }
    let (layer, eps) = (attrs.get_choice("kind") == "layer", attrs.get_float("eps"));
    let x = inputs[0].f32();
    outputs[0].f32().par_chunks_mut(c).enumerate().for_each(|(row, y)| {
        let (scale, shift) = modulation(inputs, row);
        norm::row(layer, eps, &x[row * c..][..c], scale, shift, y);
    });
}

/// The norm in standard operators, `[b, l, c]`.
pub fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let dtype = g.dtype(inputs[0]);
    let mut x = g.cast(inputs[0], DType::F32);
    if attrs.get_choice("kind") == "layer" {
        let mean = g.reduce_mean(x, &[2]);
        x = g.sub(x, mean);
    }
    let square = g.mul(x, x);
    let variance = g.reduce_mean(square, &[2]);
    let variance = g.add_scalar(variance, f64::from(attrs.get_float("eps")));
    let deviation = g.sqrt(variance);
    let x = g.div(x, deviation);
    let (groups, c) = (g.dim(inputs[1], 0), g.dim(inputs[1], 1));
    let scale = g.reshape(inputs[1], &[groups, 1, c]);
    let shift = g.reshape(inputs[2], &[groups, 1, c]);
    let y = g.mul(x, scale);
    let y = g.add(y, shift);
    vec![g.cast(y, dtype)]
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

/// Sizes that every norm op is tested on.
pub fn norm_cases(tol: &[Tol]) -> Vec<Case> {
    let case = |name: &str, kind: &str, [b, l, c, g]: [usize; 4], seed| Case {
        name: format!("{kind} {name}"),
        attrs: Attrs::new().choice("kind", kind).float("eps", 1e-6),
        dims: Dims::of(&[("b", b), ("l", l), ("c", c), ("g", g)]),
        seed,
        tol: tol.to_vec(),
    };
    let sizes = [
        ("tiny", [1, 1, 8, 1]),
        ("ragged", [2, 67, 130, 2]),
        ("shared", [3, 50, 96, 1]),
        ("large", [1, 819, 256, 1]),
    ];
    let kinds = ["layer", "rms"].into_iter();
    kinds.flat_map(|kind| sizes.map(|(name, size)| case(name, kind, size, 7))).collect()
}

fn cases() -> Vec<Case> {
    norm_cases(&[Tol::Rel(2e-6, "f32 arithmetic")])
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
