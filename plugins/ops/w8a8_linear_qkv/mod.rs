//! Queries, keys and values: three linears over the same rows in one launch.
//!
//! Each is [`crate::w8a8_linear`] without activation. A GPU reads the rows once for all three, and has one end of a
//! launch instead of three.

use turbo_graph::{Graph, Value};

use crate::common::quant::{BLOCK, FORMAT};
use crate::common::w8a8::{Operands, STRIP, split};
use crate::schema::DTYPE_ATTR;
use crate::w8a8_linear::{
    INPUTS as LINEAR, M, N, Store, expand_to, has_inputs, linear_cases, linear_tol, reference_linear,
    sample_op,
};
use crate::{Attrs, Case, Op, Tensor, TensorDef, TensorMut, TensorRef, Ty};

/// The inputs of every one of the linears, and those of each.
const SHARED: usize = 2;
const OWN: usize = 3;

const fn weights(name: &'static str) -> TensorDef {
    TensorDef { name, ..LINEAR[2] }
}

const fn scales(name: &'static str) -> TensorDef {
    TensorDef { name, ..LINEAR[3] }
}

const fn bias(name: &'static str) -> TensorDef {
    TensorDef { name, ..LINEAR[4] }
}

/// The op.
pub const OP: Op = Op {
    name: "TurboW8A8LinearQkv",
    version: 1,
    summary: "yq, yk, yv = (q * s) @ (w * ws)^T + bias, for the weights of queries, keys and values",
    doc: "TurboW8A8Linear without activation, three times over the same rows.",
    attrs: &[DTYPE_ATTR, FORMAT],
    inputs: &[
        LINEAR[0],
        LINEAR[1],
        weights("wq"),
        scales("wqs"),
        bias("bq"),
        weights("wk"),
        scales("wks"),
        bias("bk"),
        weights("wv"),
        scales("wvs"),
        bias("bv"),
    ],
    outputs: &[
        TensorDef { name: "yq", ty: Ty::T, dims: &[M, N], doc: "queries" },
        TensorDef { name: "yk", ty: Ty::T, dims: &[M, N], doc: "keys" },
        TensorDef { name: "yv", ty: Ty::T, dims: &[M, N], doc: "values" },
    ],
    constraint: has_inputs,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// The inputs of each linear, as [`crate::w8a8_linear`] takes them.
fn linears<T: Clone>(inputs: &[T]) -> impl Iterator<Item = Vec<T>> {
    let (shared, own) = inputs.split_at(SHARED);
    own.chunks(OWN).map(move |own| [shared, own].concat())
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let of = |inputs: Vec<Tensor>| {
        let shape = [inputs[0].shape[0], inputs[2].shape[0]];
        Tensor::f64(&shape, reference_linear(attrs, &inputs))
    };
    linears(inputs).map(of).collect()
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    for (inputs, output) in linears(inputs).zip(outputs) {
        let x = Operands::of(attrs, &inputs, false);
        x.compute(split(output.f32(), x.n, BLOCK, STRIP), &Store);
    }
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    linears(inputs).map(|inputs| expand_to(g, attrs, &inputs)).collect()
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_op(&OP, case)
}

fn cases() -> Vec<Case> {
    linear_cases(&[Attrs::new().choice("dtype", "f32")], &[], |format| vec![linear_tol(format); 3])
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        for (name, errors) in crate::cases::run_cpu_cases(&super::OP).unwrap() {
            assert!(errors.iter().all(|error| *error < 2e-6), "{name}: {errors:?}");
        }
    }
}
