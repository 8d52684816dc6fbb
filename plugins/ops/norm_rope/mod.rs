//! `y = rope(rms_norm(x) * weight)`: RMSNorm over all heads, then rotary embedding within each head; and the sums of
//! rows that block maps and the smoothing of keys are made of, so that neither reads `y` once more.

use rayon::prelude::*;
use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::sums::{SUM_ROWS, sums_of};
use crate::common::{attn_expand, norm};
use crate::{
    AttrDef, AttrKind, Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty,
};

const M: Dim = Dim::Axis("m");
const L: Dim = Dim::Axis("l");
const C: Dim = Dim::Axis("c");
const PAIRS: Dim = Dim::Div(&Dim::Div(&C, &Dim::Attr("heads")), &Dim::Const(2));

/// The op.
pub const OP: Op = Op {
    name: "TurboNormRope",
    version: 3,
    summary: "y = rope(rms_norm(x) * weight), sums = sums of 32 rows of y",
    doc: "The norm runs over the whole width, all heads together. The rotation turns interleaved pairs, \
          (x0 cos - x1 sin, x0 sin + x1 cos), by one table of angles that all heads share; row r is at position r % l. \
          Sums are of `y` as it is rounded, in f32 or better, in any order; the last one of a sequence may be of fewer \
          rows. TurboDiffusion `rcm/networks/wan2pt1.py`; RoFormer, arXiv:2104.09864.",
    attrs: &[
        AttrDef { name: "heads", kind: AttrKind::Int, doc: "attention heads" },
        AttrDef { name: "eps", kind: AttrKind::Float, doc: "added to the mean square" },
    ],
    inputs: &[
        TensorDef { name: "x", ty: Ty::T, dims: &[M, C], doc: "queries or keys" },
        TensorDef { name: "weight", ty: Ty::F32, dims: &[C], doc: "norm weight" },
        TensorDef { name: "cos", ty: Ty::F32, dims: &[L, PAIRS], doc: "cosine of each pair's angle" },
        TensorDef { name: "sin", ty: Ty::F32, dims: &[L, PAIRS], doc: "sine of each pair's angle" },
    ],
    outputs: &[
        TensorDef { name: "y", ty: Ty::T, dims: &[M, C], doc: "normalised and turned" },
        TensorDef {
            name: "sums",
            ty: Ty::F32,
            dims: &[Dim::Div(&M, &L), Dim::CeilDiv(&L, &Dim::Const(SUM_ROWS)), C],
            doc: "sum of each 32 rows of a sequence",
        },
    ],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// The rows are whole sequences of `l` positions.
fn constraint(_: &Attrs, dims: &Dims) -> Result<(), String> {
    let (l, m) = (dims.get("l"), dims.get("m"));
    if l > 0 && m % l == 0 { Ok(()) } else { Err(format!("axis `l` is {l}, which does not divide {m} rows")) }
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let (m, c, l) = (inputs[0].shape[0], inputs[0].shape[1], inputs[2].shape[0]);
    let pairs = c / attrs.get_int("heads") / 2;
    let zero = vec![0.0; c];
    let mut y = Vec::with_capacity(m * c);
    for row in 0..m {
        let x = &inputs[0].as_f64()[row * c..][..c];
        let x = norm::reference_row(false, attrs.get_float("eps"), x, inputs[1].as_f64(), &zero);
        let at = row % l * pairs;
        for i in 0..c / 2 {
            let (cos, sin) = (inputs[2].as_f64()[at + i % pairs], inputs[3].as_f64()[at + i % pairs]);
            y.push(x[2 * i] * cos - x[2 * i + 1] * sin);
            y.push(x[2 * i] * sin + x[2 * i + 1] * cos);
        }
    }
    let y = Tensor::f64(&inputs[0].shape, y);
    let sums = sums_of(&y, l);
    vec![y, sums]
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [y, sums] = outputs else { return };
    let (c, l) = (inputs[0].shape[1], inputs[2].shape[0]);
    if c == 0 {
        return;
    }
    let d = c / attrs.get_int("heads");
    let (x, weight, cos, sin) = (inputs[0].f32(), inputs[1].f32(), inputs[2].f32(), inputs[3].f32());
    let (eps, zero) = (attrs.get_float("eps"), vec![0.0; c]);
    let parts: Vec<&mut [f32]> = y.f32().chunks_mut(l * c).flat_map(|x| x.chunks_mut(SUM_ROWS * c)).collect();
    let parts = parts.into_par_iter().zip(sums.f32().par_chunks_mut(c)).enumerate();
    parts.for_each(|(part, (y, sums))| {
        let (sequence, part) = (part / l.div_ceil(SUM_ROWS), part % l.div_ceil(SUM_ROWS));
        let mut total = vec![0.0; c];
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let position = part * SUM_ROWS + i;
            norm::row(false, eps, &x[(sequence * l + position) * c..][..c], weight, &zero, y);
            let at = position * (d / 2);
            let (cos, sin) = (&cos[at..at + d / 2], &sin[at..at + d / 2]);
            for head in y.chunks_exact_mut(d) {
                for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
            total.iter_mut().zip(&*y).for_each(|(sum, &y)| *sum += f64::from(y));
        }
        sums.iter_mut().zip(total).for_each(|(sum, total)| *sum = total as f32);
    });
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let dtype = g.dtype(inputs[0]);
    let (m, c) = (g.dim(inputs[0], 0), g.dim(inputs[0], 1));
    let heads = attrs.get_int("heads");
    let (l, pairs) = (g.dim(inputs[2], 0), g.dim(inputs[2], 1));
    let x = g.cast(inputs[0], DType::F32);
    let weight = g.reshape(inputs[1], &[1, c]);
    let zero = g.constant_f32(&[1, c], &vec![0.0; c]);
    let rms = Attrs::new().choice("kind", "rms").float("eps", attrs.get_float("eps"));
    let x = crate::norm::expand(g, &rms, &[x, weight, zero])[0];
    let x = g.reshape(x, &[m / l.max(1), l, heads, pairs, 2]);
    let (even, odd) = (g.slice(x, 4, 0, 1), g.slice(x, 4, 1, 2));
    let cos = g.reshape(inputs[2], &[1, l, 1, pairs, 1]);
    let sin = g.reshape(inputs[3], &[1, l, 1, pairs, 1]);
    let turn = |g: &mut Graph, a, b| (g.mul(a, cos), g.mul(b, sin));
    let (p, q) = turn(g, even, odd);
    let first = g.sub(p, q);
    let (p, q) = turn(g, odd, even);
    let second = g.add(p, q);
    let y = g.concat(&[first, second], 4);
    let y = g.reshape(y, &[m, c]);
    let y = g.cast(y, dtype);
    let sums = g.cast(y, DType::F32);
    let sums = g.reshape(sums, &[m / l.max(1), 1, l, c]);
    let parts = attn_expand::blocks(g, sums, SUM_ROWS);
    let count = g.dim(parts, 2);
    let sums = g.reduce_sum(parts, &[3]);
    vec![y, g.reshape(sums, &[m / l.max(1), count, c])]
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

fn cases() -> Vec<Case> {
    let case = |name: &str, [b, l, c, heads]: [usize; 4]| Case {
        name: name.to_string(),
        attrs: Attrs::new().int("heads", heads).float("eps", 1e-6),
        dims: Dims::of(&[("m", b * l), ("l", l), ("c", c)]),
        seed: 11,
        tol: vec![Tol::Rel(2e-6, "f32 arithmetic"), Tol::Rel(4e-6, "f32 arithmetic, and values that cancel")],
    };
    vec![
        case("tiny", [1, 1, 2, 1]),
        case("ragged", [2, 37, 3 * 20, 3]),
        case("wan", [1, 105, 256, 2]),
        case("large", [1, 819, 1536, 12]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
