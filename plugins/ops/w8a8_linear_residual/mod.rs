//! `y = residual + gate * ((q * s) @ (w * ws)^T + bias)`: the linear that ends a branch of a block.

use turbo_graph::{DType, Graph, Value};

use crate::common::quant::{BLOCK, FORMAT};
use crate::common::simd::{Isa, mul_add};
use crate::common::w8a8::{Block, Epilogue, Operands, STRIP, split};
use crate::w8a8_linear::{
    INPUTS as LINEAR, M, N, expand_linear, has_inputs, linear_cases, linear_tol, reference_linear, sample_op,
};
use crate::{Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Ty};

/// The op.
pub const OP: Op = Op {
    name: "TurboW8A8LinearResidual",
    version: 2,
    summary: "y = residual + gate * ((q * s) @ (w * ws)^T + bias)",
    doc: "TurboW8A8Linear without activation; rows are divided evenly among the rows of `gate`.",
    attrs: &[FORMAT],
    inputs: &[
        LINEAR[0],
        LINEAR[1],
        LINEAR[2],
        LINEAR[3],
        LINEAR[4],
        TensorDef { name: "residual", ty: Ty::T, dims: &[M, N], doc: "what the branch adds to" },
        TensorDef {
            name: "gate",
            ty: Ty::F32,
            dims: &[Dim::Axis("g"), N],
            doc: "factor; one row per m/g rows",
        },
    ],
    outputs: &[TensorDef { name: "y", ty: Ty::T, dims: &[M, N], doc: "sum" }],
    constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

fn constraint(attrs: &Attrs, dims: &Dims) -> Result<(), String> {
    has_inputs(attrs, dims)?;
    let (g, m) = (dims.get("g"), dims.get("m"));
    if g > 0 && m % g == 0 { Ok(()) } else { Err(format!("axis `g` is {g}, which does not divide {m} rows")) }
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut y = reference_linear(attrs, inputs);
    let (m, n, g) = (inputs[5].shape[0], inputs[5].shape[1], inputs[6].shape[0]);
    for (i, v) in y.iter_mut().enumerate() {
        *v = inputs[5].as_f64()[i] + inputs[6].as_f64()[i / n / (m / g) * n + i % n] * *v;
    }
    vec![Tensor::f64(&inputs[5].shape, y)]
}

/// Scales by the gate and adds to the residual.
struct Residual<'a> {
    residual: &'a [f32],
    gate: &'a [f32],
    n: usize,
    /// Rows that share a row of the gate.
    group: usize,
}

impl Epilogue for Residual<'_> {
    type Out<'o> = Vec<&'o mut [f32]>;

    #[inline(always)]
    fn finish<I: Isa>(&self, out: &mut Self::Out<'_>, block: &Block<'_>) {
        for (i, (out, row)) in out.iter_mut().zip(block.rows()).enumerate() {
            let at = block.row + i;
            let residual = &self.residual[at * self.n + block.column..][..block.width];
            let gate = &self.gate[at / self.group * self.n + block.column..][..block.width];
            let out = &mut out[block.offset()..][..block.width];
            for (((y, &v), &r), &gate) in out.iter_mut().zip(row).zip(residual).zip(gate) {
                *y = mul_add::<I>(gate, v, r);
            }
        }
    }
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let x = Operands::of(attrs, inputs, false);
    let (residual, gate) = (inputs[5].f32(), inputs[6].f32());
    let epilogue = Residual { residual, gate, n: x.n, group: x.m / inputs[6].shape[0] };
    x.compute(split(outputs[0].f32(), x.n, BLOCK, STRIP), &epilogue);
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let dtype = g.dtype(inputs[5]);
    let y = expand_linear(g, attrs, inputs);
    let (m, n, groups) = (g.dim(y, 0), g.dim(y, 1), g.dim(inputs[6], 0));
    let y = g.reshape(y, &[groups, m / groups.max(1), n]);
    let gate = g.reshape(inputs[6], &[groups, 1, n]);
    let y = g.mul(y, gate);
    let y = g.reshape(y, &[m, n]);
    let residual = g.cast(inputs[5], DType::F32);
    let y = g.add(residual, y);
    vec![g.cast(y, dtype)]
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_op(&OP, case)
}

fn cases() -> Vec<Case> {
    let tol = |format| vec![linear_tol(format)];
    let mut all = linear_cases(&[Attrs::new()], &[("g", 1)], tol);
    let even = |case: &Case| case.dims.get("m").is_multiple_of(2);
    all.extend(linear_cases(&[Attrs::new()], &[("g", 2)], tol).into_iter().filter(even).map(|mut case| {
        case.name += " two gates";
        case
    }));
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
