//! `y = activation(x @ w^T + bias)`: a linear in the activation type.
//!
//! TensorRT has one of its own, but times its many kernels for minutes at every size and picks slow ones at low effort.

use turbo_graph::{Graph, Value};

use crate::cases::sample_inputs;
use crate::w8a8_linear::{ACTIVATION, M, N, gelu, has_inputs, reference_gelu};
use crate::{Attrs, Case, Data, Dim, Dims, Op, Tensor, TensorDef, Tol, Ty};

mod cpu;

const K: Dim = Dim::Axis("k");

/// The op.
pub const OP: Op = Op {
    name: "TurboLinear",
    version: 1,
    summary: "y = activation(x @ w^T + bias)",
    doc: "Products are summed in f32, in any order; then the bias, then the activation, and one rounding to T.",
    attrs: &[ACTIVATION],
    inputs: &[
        TensorDef { name: "x", ty: Ty::T, dims: &[M, K], doc: "activations" },
        TensorDef { name: "w", ty: Ty::T, dims: &[N, K], doc: "weights, one row per output" },
        TensorDef { name: "bias", ty: Ty::T, dims: &[N], doc: "bias" },
    ],
    outputs: &[TensorDef { name: "y", ty: Ty::T, dims: &[M, N], doc: "outputs" }],
    constraint: has_inputs,
    reference,
    cpu: cpu::run,
    expand: Some(expand),
    sample,
    cases,
};

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let [x, w, bias] = [0, 1, 2].map(|i| inputs[i].as_f64());
    let (m, n, k) = (inputs[0].shape[0], inputs[1].shape[0], inputs[1].shape[1]);
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let products = x[i * k..][..k].iter().zip(&w[j * k..][..k]).map(|(x, w)| x * w);
            let sum = products.sum::<f64>() + bias[j];
            y[i * n + j] = if gelu(attrs) { reference_gelu(sum) } else { sum };
        }
    }
    vec![Tensor::f64(&[m, n], y)]
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let y = g.gemm(inputs[0], inputs[1], Some(inputs[2]));
    vec![if gelu(attrs) { g.gelu_tanh(y) } else { y }]
}

/// Weights that keep outputs near one, exact in bf16.
fn sample(case: &Case) -> Vec<Tensor> {
    let mut tensors = sample_inputs(&OP, case);
    let unit = (-0.5 * (case.dims.get("k") as f64).log2()).round().exp2();
    if let Data::F64(w) = &mut tensors[1].data {
        w.iter_mut().for_each(|w| *w *= unit);
    }
    tensors
}

fn cases() -> Vec<Case> {
    let sizes = [
        ("one value", [1, 1, 1]),
        ("one row", [1, 130, 256]),
        ("ragged", [132, 70, 200]),
        ("odd", [67, 45, 131]),
        ("tiles", [256, 256, 128]),
        ("within a step", [300, 128, 72]),
        ("large", [300, 384, 512]),
    ];
    let case = |activation: &str, (name, [m, n, k]): (&str, [usize; 3])| Case {
        name: format!("{name} {activation}"),
        attrs: Attrs::new().choice(ACTIVATION.name, activation),
        dims: Dims::of(&[("m", m), ("n", n), ("k", k)]),
        seed: 5,
        tol: vec![Tol::Rel(2e-6, "f32 sums")],
    };
    ["none", "gelu_tanh"].iter().flat_map(|activation| sizes.map(|size| case(activation, size))).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&super::OP).unwrap();
    }
}
