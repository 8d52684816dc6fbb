//! `yq, ys = quantize(activation((q * s) @ (w * ws)^T + bias))`: a linear whose output feeds the next one.

use turbo_graph::{Graph, Value};

use crate::common::quant::{BLOCK, FORMAT, Format, quantize_block};
use crate::common::simd::Isa;
use crate::common::w8a8::{Block, Epilogue, Operands, STRIP, split};
use crate::w8a8_linear::{
    ACTIVATION, INPUTS, M, N, expand_linear, gelu, has_inputs, linear_cases, linear_tol, reference_linear,
    sample_op,
};
use crate::{Attrs, Case, Dim, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty};

/// The op.
pub const OP: Op = Op {
    name: "TurboW8A8LinearQuantize",
    version: 2,
    summary: "yq, ys = quantize(activation((q * s) @ (w * ws)^T + bias))",
    doc: "TurboW8A8Linear followed by TurboQuantize of the same format; the output never leaves in full precision.",
    attrs: &[ACTIVATION, FORMAT],
    inputs: &INPUTS,
    outputs: &[
        TensorDef { name: "yq", ty: Ty::I8, dims: &[M, N], doc: "quantised outputs" },
        TensorDef {
            name: "ys",
            ty: Ty::F32,
            dims: &[Dim::CeilDiv(&M, &Dim::Const(BLOCK)), Dim::CeilDiv(&N, &Dim::Const(BLOCK))],
            doc: "scale of each 128 x 128 block",
        },
    ],
    constraint: has_inputs,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let y = reference_linear(attrs, inputs);
    crate::quantize::reference_blocks(attrs, &y, inputs[0].shape[0], inputs[2].shape[0]).into()
}

/// Quantises each block while it is in the cache.
struct Quantize(Format);

impl Epilogue for Quantize {
    type Out<'o> = (Vec<&'o mut [i8]>, &'o mut [f32]);

    #[inline(always)]
    fn finish<I: Isa>(&self, (q, s): &mut Self::Out<'_>, block: &Block<'_>) {
        let outs = q.iter_mut().map(|row| &mut row[block.offset()..][..block.width]);
        s[block.offset() / BLOCK] = quantize_block(self.0, block.rows(), outs);
    }
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [q, s] = outputs else { return };
    let x = Operands::of(attrs, inputs, gelu(attrs));
    let scales = split(s.f32(), x.n.div_ceil(BLOCK), 1, STRIP / BLOCK).into_iter().flatten();
    x.compute(split(q.i8(), x.n, BLOCK, STRIP).into_iter().zip(scales).collect(), &Quantize(x.format));
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let y = expand_linear(g, attrs, inputs);
    crate::quantize::expand(g, attrs, &[y])
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_op(&OP, case)
}

fn cases() -> Vec<Case> {
    let attrs = |a: &str| Attrs::new().choice("activation", a);
    let value = |format: Format| match format {
        Format::Int8 => Tol::OffByOne(2e-3, "f32 sums decide ties"),
        Format::E4m3 => Tol::E4m3(2e-2, "sums 3e-3 off move a few percent of the values by up to an eighth"),
    };
    linear_cases(&[attrs("none"), attrs("gelu_tanh")], &[], |format| vec![value(format), linear_tol(format)])
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
