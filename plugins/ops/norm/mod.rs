//! `y = norm(x) * scale + shift`: LayerNorm or RMSNorm over the last axis, then modulation or affine weights.

use rayon::prelude::*;
use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::norm;
use crate::{
    AttrDef, AttrKind, Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty,
};

const M: Dim = Dim::Axis("m");
const C: Dim = Dim::Axis("c");
const G: Dim = Dim::Axis("g");

/// Attributes of the norm ops.
pub const ATTRS: &[AttrDef] = &[
    AttrDef { name: "kind", kind: AttrKind::Choice(&["layer", "rms"]), doc: "subtract the mean, or not" },
    AttrDef { name: "eps", kind: AttrKind::Float, doc: "added to the variance or mean square" },
];

/// Inputs of the norm ops.
pub const INPUTS: &[TensorDef] = &[
    TensorDef { name: "x", ty: Ty::T, dims: &[M, C], doc: "tokens" },
    TensorDef { name: "scale", ty: Ty::F32, dims: &[G, C], doc: "factor; one row per m/g rows" },
    TensorDef { name: "shift", ty: Ty::F32, dims: &[G, C], doc: "summand, as `scale`" },
];

/// The op.
pub const OP: Op = Op {
    name: "TurboNorm",
    version: 2,
    summary: "y = norm(x) * scale + shift",
    doc: "`kind` layer: (x - mean) / sqrt(variance + eps); rms: x / sqrt(mean square + eps); over the last axis, in \
          f32 or better. Rows are divided evenly among the rows of `scale` and `shift`. Wan's modulation passes 1 + \
          scale. LayerNorm: arXiv:1607.06450; RMSNorm: arXiv:1910.07467.",
    attrs: ATTRS,
    inputs: INPUTS,
    outputs: &[TensorDef { name: "y", ty: Ty::T, dims: &[M, C], doc: "normalised tokens" }],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// `g` divides the rows.
pub fn constraint(_: &Attrs, dims: &Dims) -> Result<(), String> {
    let (g, m) = (dims.get("g"), dims.get("m"));
    if g > 0 && m % g == 0 { Ok(()) } else { Err(format!("axis `g` is {g}, which does not divide {m} rows")) }
}

/// The norm in f64, `[m, c]` flattened.
pub fn reference_norm(attrs: &Attrs, inputs: &[Tensor]) -> Vec<f64> {
    let (m, c, g) = (inputs[0].shape[0], inputs[0].shape[1], inputs[1].shape[0]);
    let layer = attrs.get_choice("kind") == "layer";
    (0..m)
        .flat_map(|row| {
            let at = row / (m / g) * c;
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
    let (m, c, g) = (inputs[0].shape[0], inputs[0].shape[1], inputs[1].shape[0]);
    let at = row / (m / g) * c;
    (&inputs[1].f32()[at..at + c], &inputs[2].f32()[at..at + c])
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let c = inputs[0].shape[1];
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

/// The norm in standard operators, `[m, c]`.
pub fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let dtype = g.dtype(inputs[0]);
    let mut x = g.cast(inputs[0], DType::F32);
    if attrs.get_choice("kind") == "layer" {
        let mean = g.reduce_mean(x, &[1]);
        x = g.sub(x, mean);
    }
    let square = g.mul(x, x);
    let variance = g.reduce_mean(square, &[1]);
    let variance = g.add_scalar(variance, f64::from(attrs.get_float("eps")));
    let deviation = g.sqrt(variance);
    let x = g.div(x, deviation);
    let (m, c, groups) = (g.dim(x, 0), g.dim(x, 1), g.dim(inputs[1], 0));
    let x = g.reshape(x, &[groups, m / groups.max(1), c]);
    let scale = g.reshape(inputs[1], &[groups, 1, c]);
    let shift = g.reshape(inputs[2], &[groups, 1, c]);
    let y = g.mul(x, scale);
    let y = g.add(y, shift);
    let y = g.reshape(y, &[m, c]);
    vec![g.cast(y, dtype)]
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

/// Sizes that every norm op is tested on.
pub fn norm_cases(tol: &[Tol]) -> Vec<Case> {
    let case = |name: &str, kind: &str, [m, c, g]: [usize; 3], seed| Case {
        name: format!("{kind} {name}"),
        attrs: Attrs::new().choice("kind", kind).float("eps", 1e-6),
        dims: Dims::of(&[("m", m), ("c", c), ("g", g)]),
        seed,
        tol: tol.to_vec(),
    };
    let sizes = [
        ("tiny", [1, 8, 1]),
        ("ragged", [134, 130, 2]),
        ("shared", [150, 96, 1]),
        ("large", [819, 256, 1]),
        ("groups", [300, 768, 3]),
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
