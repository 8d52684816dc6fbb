//! `q, s = quantize(norm(x) * scale + shift)`: a norm whose output goes straight into W8A8 linears.

use rayon::prelude::*;
use turbo_graph::{Graph, Value};

use crate::cases::sample_inputs;
use crate::common::norm;
use crate::common::quant::{BLOCK, FORMAT, Format, quantize_rows};
use crate::norm::{ATTRS as NORM, INPUTS, constraint, modulation, norm_cases, reference_norm};
use crate::quantize;
use crate::{Attrs, Case, Dim, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty};

const M: Dim = Dim::Axis("m");
const C: Dim = Dim::Axis("c");

/// The op.
pub const OP: Op = Op {
    name: "TurboNormQuantize",
    version: 3,
    summary: "q, s = quantize(norm(x) * scale + shift)",
    doc: "TurboNorm followed by TurboQuantize of the same format, in one pass over memory.",
    attrs: &[NORM[0], NORM[1], FORMAT],
    inputs: INPUTS,
    outputs: &[
        TensorDef { name: "q", ty: Ty::I8, dims: &[M, C], doc: "quantised values" },
        TensorDef {
            name: "s",
            ty: Ty::F32,
            dims: &[Dim::CeilDiv(&M, &Dim::Const(BLOCK)), Dim::CeilDiv(&C, &Dim::Const(BLOCK))],
            doc: "scale of each 128 x 128 block",
        },
    ],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let y = reference_norm(attrs, inputs);
    quantize::reference_blocks(attrs, &y, inputs[0].shape[0], inputs[0].shape[1]).into()
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [q, s] = outputs else { return };
    let c = inputs[0].shape[1];
    if c == 0 {
        return;
    }
    let (layer, eps) = (attrs.get_choice("kind") == "layer", attrs.get_float("eps"));
    let (format, x) = (Format::of(attrs), inputs[0].f32());
    let tiles = q.i8().par_chunks_mut(BLOCK * c).zip(s.f32().par_chunks_mut(c.div_ceil(BLOCK)));
    tiles.enumerate().for_each(|(tile, (q, s))| {
        let mut rows = vec![0.0; q.len()];
        for (i, y) in rows.chunks_mut(c).enumerate() {
            let row = tile * BLOCK + i;
            let (scale, shift) = modulation(inputs, row);
            norm::row(layer, eps, &x[row * c..][..c], scale, shift, y);
        }
        quantize_rows(format, &rows, c, q, s);
    });
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let y = crate::norm::expand(g, attrs, inputs)[0];
    quantize::expand(g, attrs, &[y])
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

fn cases() -> Vec<Case> {
    let [int8, e4m3] = [
        (Format::Int8, Tol::OffByOne(2e-3, "f32 norm decides ties")),
        (Format::E4m3, Tol::E4m3(4e-3, "f32 norm decides ties, in 2e-3 of the values by up to an eighth")),
    ]
    .map(|(format, tol)| {
        let mut cases = norm_cases(&[tol, Tol::Rel(2e-6, "f32 arithmetic")]);
        for case in &mut cases {
            case.name = format!("{} {}", case.name, format.word());
            case.attrs = case.attrs.clone().choice(FORMAT.name, format.word());
        }
        cases
    });
    [int8, e4m3].concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
