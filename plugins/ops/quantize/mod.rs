//! `q = sat8(rne(x * 128 / amax))`, `s = amax / 128` over blocks of 128 x 128.
//!
//! TurboDiffusion `ops/quant/quant.hpp`; see [`crate::common::quant`].

use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::quant::{self, BLOCK};
use crate::{Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty, schema};

const M: Dim = Dim::Axis("m");
const K: Dim = Dim::Axis("k");

/// The op.
pub const OP: Op = Op {
    name: "TurboQuantize",
    version: 1,
    summary: "q = sat8(rne(x * 128 / amax)), s = amax / 128 over blocks of 128 x 128",
    doc: "Rows are the flattened tokens of the whole batch. `amax` is at least 1e-8. `+amax` becomes 127 and \
          `-amax` -128. Division as IEEE 754 has it (TurboDiffusion's CUDA build approximates 128 / amax and may \
          differ by 1 where x * 128 / amax is close to a half).",
    attrs: &[],
    inputs: &[TensorDef { name: "x", ty: Ty::T, dims: &[M, K], doc: "activations" }],
    outputs: &[
        TensorDef { name: "q", ty: Ty::I8, dims: &[M, K], doc: "quantised values" },
        TensorDef {
            name: "s",
            ty: Ty::F32,
            dims: &[Dim::CeilDiv(&M, &Dim::Const(BLOCK)), Dim::CeilDiv(&K, &Dim::Const(BLOCK))],
            doc: "scale of each block",
        },
    ],
    constraint: schema::no_constraint,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// Quantises `[m, k]` values naively.
pub fn reference_blocks(x: &[f64], m: usize, k: usize) -> [Tensor; 2] {
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let mut amax = vec![1e-8f32; rows * columns];
    for i in 0..m {
        for j in 0..k {
            let a = &mut amax[i / BLOCK * columns + j / BLOCK];
            *a = a.max(x[i * k + j].abs() as f32);
        }
    }
    let q = |i: usize, j: usize| {
        let factor = 128.0f32 / amax[i / BLOCK * columns + j / BLOCK];
        (x[i * k + j] as f32 * factor).round_ties_even().clamp(-128.0, 127.0) as i8
    };
    let values = (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|(i, j)| q(i, j)).collect();
    let scales = amax.iter().map(|&a| f64::from(a / 128.0)).collect();
    [Tensor::i8(&[m, k], values), Tensor::f64(&[rows, columns], scales)]
}

fn reference(_: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let x = &inputs[0];
    reference_blocks(x.as_f64(), x.shape[0], x.shape[1]).into()
}

fn cpu(_: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [q, s] = outputs else { return };
    let x = inputs[0];
    quant::quantize(x.f32(), x.shape[0], x.shape[1], q.i8(), s.f32());
}

/// `x [m, k]` as blocks `[rows, 128, columns, 128]`, zeros beyond the edges.
fn blocks(g: &mut Graph, x: Value) -> Value {
    let (m, k) = (g.dim(x, 0), g.dim(x, 1));
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let x = g.pad(x, &[(0, rows * BLOCK - m), (0, columns * BLOCK - k)], 0.0);
    g.reshape(x, &[rows, BLOCK, columns, BLOCK])
}

fn unblock(g: &mut Graph, x: Value, m: usize, k: usize) -> Value {
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let x = g.reshape(x, &[rows * BLOCK, columns * BLOCK]);
    let x = g.slice(x, 0, 0, m);
    g.slice(x, 1, 0, k)
}

/// The op in standard operators.
pub fn expand(g: &mut Graph, _: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let x = g.cast(inputs[0], DType::F32);
    let (m, k) = (g.dim(x, 0), g.dim(x, 1));
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let tiles = blocks(g, x);
    let amax = g.abs(tiles);
    let amax = g.reduce_max(amax, &[1, 3]);
    let floor = g.scalar(DType::F32, 1e-8);
    let amax = g.max(amax, floor);
    let full = g.scalar(DType::F32, 128.0);
    let factor = g.div(full, amax);
    let q = g.mul(tiles, factor);
    let q = g.round(q);
    let q = g.clip(q, -128.0, 127.0);
    let q = g.cast(q, DType::I8);
    let q = unblock(g, q, m, k);
    let s = g.mul_scalar(amax, 1.0 / 128.0);
    vec![q, g.reshape(s, &[rows, columns])]
}

/// `q [m, k]` and `s` back to f32 values, in standard operators.
pub fn expand_dequantize(g: &mut Graph, q: Value, s: Value) -> Value {
    let (m, k) = (g.dim(q, 0), g.dim(q, 1));
    let (rows, columns) = (g.dim(s, 0), g.dim(s, 1));
    let x = g.cast(q, DType::F32);
    let x = blocks(g, x);
    let s = g.reshape(s, &[rows, 1, columns, 1]);
    let x = g.mul(x, s);
    unblock(g, x, m, k)
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_inputs(&OP, case)
}

fn cases() -> Vec<Case> {
    let tie = "f32 rounding of x * 128 / amax decides ties";
    let case = |name: &str, m, k, seed| Case {
        name: name.to_string(),
        attrs: Attrs::new(),
        dims: Dims::of(&[("m", m), ("k", k)]),
        seed,
        tol: vec![Tol::OffByOne(1e-3, tie), Tol::Rel(1e-7, "one rounding")],
    };
    vec![
        case("one value", 1, 1, 1),
        case("one row", 1, 300, 2),
        case("ragged", 131, 257, 3),
        case("whole blocks", 256, 256, 4),
        case("large", 819, 1024, 5),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_agrees_with_the_reference() {
        crate::cases::run_cpu_cases(&OP).unwrap();
    }

    #[test]
    fn the_ends_of_the_range_and_ties() {
        let mut x = vec![0.0f32; 128];
        x[..6].copy_from_slice(&[128.0, -128.0, 0.5, 1.5, -0.5, 127.5]);
        let shape = [1, 128];
        let input = TensorRef { shape: &shape, data: crate::DataRef::F32(&x) };
        let out = OP.run(&Attrs::new(), &[input]).unwrap();
        assert_eq!(&out[0].as_i8()[..6], [127, -128, 0, 2, 0, 127]);
        let zero = vec![0.0f32; 128];
        let input = TensorRef { shape: &shape, data: crate::DataRef::F32(&zero) };
        let out = OP.run(&Attrs::new(), &[input]).unwrap();
        assert!(out[0].as_i8().iter().all(|&q| q == 0));
    }
}
