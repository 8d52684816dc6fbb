//! 8-bit values and scales of blocks of 128 x 128: `q = round(x * full / amax)`, `s = amax / full`.
//!
//! INT8 is TurboDiffusion's `ops/quant/quant.hpp`; see [`crate::common::quant`].

use turbo_graph::{DType, Graph, Value};

use crate::cases::sample_inputs;
use crate::common::f8;
use crate::common::quant::{self, BLOCK, FORMAT, Format};
use crate::{Attrs, Case, Dim, Dims, Op, Tensor, TensorDef, TensorMut, TensorRef, Tol, Ty, schema};

const M: Dim = Dim::Axis("m");
const K: Dim = Dim::Axis("k");

/// The op.
pub const OP: Op = Op {
    name: "TurboQuantize",
    version: 2,
    summary: "q = round(x * (full / amax)), s = amax / full over blocks of 128 x 128",
    doc: "Rows are the flattened tokens of the whole batch. `amax` is the largest magnitude of the block, at least 1e-8. \
          `format` int8: `full` is 128, rounding is to the nearest integer, ties to even, and saturates: `+amax` becomes \
          127 and `-amax` -128. e4m3: `full` is 448, the largest E4M3 value; rounding is to the nearest value, ties to \
          even, subnormals included, and saturates; `q` holds the bytes, a negative value that rounds to zero keeps its \
          sign. Both: each step is one operation of IEEE 754 in f32 (TurboDiffusion's CUDA build approximates \
          128 / amax and may differ by 1 where x * 128 / amax is close to a half). NaN does not count for `amax` and \
          becomes 0; beside an infinity `s` is infinite and all values are 0.",
    attrs: &[FORMAT],
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
pub fn reference_blocks(attrs: &Attrs, x: &[f64], m: usize, k: usize) -> [Tensor; 2] {
    let format = Format::of(attrs);
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let mut amax = vec![1e-8f32; rows * columns];
    for i in 0..m {
        for j in 0..k {
            let a = &mut amax[i / BLOCK * columns + j / BLOCK];
            *a = a.max(x[i * k + j].abs() as f32);
        }
    }
    let q = |i: usize, j: usize| {
        let factor = format.full() / amax[i / BLOCK * columns + j / BLOCK];
        let x = x[i * k + j] as f32 * factor;
        match format {
            Format::Int8 => x.round_ties_even().clamp(-128.0, 127.0) as i8,
            Format::E4m3 => f8::to_byte(x) as i8,
        }
    };
    let values = (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|(i, j)| q(i, j)).collect();
    let scales = amax.iter().map(|&a| f64::from(a / format.full())).collect();
    [Tensor::i8(&[m, k], values), Tensor::f64(&[rows, columns], scales)]
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let x = &inputs[0];
    reference_blocks(attrs, x.as_f64(), x.shape[0], x.shape[1]).into()
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let [q, s] = outputs else { return };
    let x = inputs[0];
    quant::quantize(Format::of(attrs), x.f32(), [x.shape[0], x.shape[1]], q.i8(), s.f32());
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
pub fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    let x = g.cast(inputs[0], DType::F32);
    let (m, k) = (g.dim(x, 0), g.dim(x, 1));
    let (rows, columns) = (m.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let tiles = blocks(g, x);
    let amax = g.abs(tiles);
    let amax = g.reduce_max(amax, &[1, 3]);
    let floor = g.scalar(DType::F32, 1e-8);
    let amax = g.max(amax, floor);
    let format = Format::of(attrs);
    let full = g.scalar(DType::F32, format.full().into());
    let factor = g.div(full, amax);
    let q = g.mul(tiles, factor);
    let q = match format {
        Format::Int8 => {
            let q = g.round(q);
            g.clip(q, -128.0, 127.0)
        }
        Format::E4m3 => expand_bytes(g, q),
    };
    let q = g.cast(q, DType::I8);
    let q = unblock(g, q, m, k);
    let s = g.div(amax, full);
    vec![q, g.reshape(s, &[rows, columns])]
}

/// The E4M3 bytes of f32 values, as f32 from -128 to 127. ONNX has no operator that looks at bits.
fn expand_bytes(g: &mut Graph, x: Value) -> Value {
    let rounded = g.cast(x, DType::F8E4M3);
    let rounded = g.cast(rounded, DType::F32);
    let magnitude = g.abs(rounded);
    // 2^e of the value's power, or the least, has 8 steps; the byte counts 8 for each power below, and -6 is the least.
    let least = g.scalar(DType::F32, 1.0 / 64.0);
    let exponent = g.max(magnitude, least);
    let exponent = g.log(exponent);
    let exponent = g.mul_scalar(exponent, std::f64::consts::LOG2_E);
    // More than the logarithm's error, and less than what 1.875, the largest of a power, lacks to the next.
    let exponent = g.add_scalar(exponent, 1.0 / 16.0);
    let exponent = g.floor(exponent);
    let shrink = g.mul_scalar(exponent, -std::f64::consts::LN_2);
    let shrink = g.exp(shrink);
    let steps = g.mul(magnitude, shrink);
    let steps = g.mul_scalar(steps, 8.0);
    let steps = g.round(steps);
    let below = g.mul_scalar(exponent, 8.0);
    let below = g.add_scalar(below, 48.0);
    let byte = g.add(below, steps);
    // The sign bit of a byte is worth -128.
    let sign = g.sign(x);
    let zero = g.scalar(DType::F32, 0.0);
    let sign = g.min(sign, zero);
    let sign = g.mul_scalar(sign, 128.0);
    g.add(byte, sign)
}

/// `q [m, k]` and `s` back to f32 values, in standard operators.
pub fn expand_dequantize(g: &mut Graph, format: Format, q: Value, s: Value) -> Value {
    let (m, k) = (g.dim(q, 0), g.dim(q, 1));
    let (rows, columns) = (g.dim(s, 0), g.dim(s, 1));
    let x = match format {
        Format::Int8 => g.cast(q, DType::F32),
        Format::E4m3 => {
            // Bytes from 0x80 are negative integers, which count from the end of the table.
            let table = g.constant_f32(&[f8::VALUES.len()], &f8::VALUES);
            let indices = g.cast(q, DType::I32);
            g.gather(table, indices)
        }
    };
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
    let forms = [(Format::Int8, Tol::OffByOne(1e-3, tie)), (Format::E4m3, Tol::Exact)];
    let case = |(format, tol): (Format, Tol), name: &str, m, k, seed| Case {
        name: format!("{name} {}", format.word()),
        attrs: Attrs::new().choice(FORMAT.name, format.word()),
        dims: Dims::of(&[("m", m), ("k", k)]),
        seed,
        tol: vec![tol, Tol::Rel(1e-7, "one rounding")],
    };
    let cases = |form| {
        [
            case(form, "one value", 1, 1, 1),
            case(form, "one row", 1, 300, 2),
            case(form, "ragged", 131, 257, 3),
            case(form, "whole blocks", 256, 256, 4),
            case(form, "large", 819, 1024, 5),
        ]
    };
    forms.into_iter().flat_map(cases).collect()
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
        let run = |format: Format, values: &[f32]| {
            let mut x = vec![0.0f32; 128];
            x[..values.len()].copy_from_slice(values);
            let input = TensorRef { shape: &[1, 128], data: crate::DataRef::F32(&x) };
            let attrs = Attrs::new().choice(FORMAT.name, format.word());
            let [q, s] = OP.run(&attrs, &[input]).unwrap().try_into().unwrap();
            (q.as_i8().to_vec(), s.to_f64()[0])
        };
        let (q, _) = run(Format::Int8, &[128.0, -128.0, 0.5, 1.5, -0.5, 127.5]);
        assert_eq!(q[..6], [127, -128, 0, 2, 0, 127]);
        // 1, ties at 17/16 and 19/16 of it, half of the least step and a little more, a little less, negative.
        let tiny = 1.0 / 1024.0;
        let x = [448.0, -448.0, 1.0, 1.0625, 1.1875, tiny, tiny * 1.01, -tiny];
        let (q, s) = run(Format::E4m3, &x);
        assert_eq!(q[..8], [0x7e, 0xfe, 0x38, 0x38, 0x3a, 0x00, 0x01, 0x80].map(|byte: u8| byte as i8));
        assert_eq!(s, 1.0);
        for format in [Format::Int8, Format::E4m3] {
            assert!(run(format, &[]).0.iter().all(|&q| q == 0));
            let (q, s) = run(format, &[f32::NAN, 3.0, f32::from_bits(0x7fc0_0055)]);
            let expected = (0.0, 0.0, f64::from(3.0 / format.full()));
            assert_eq!((format.value(q[0]), format.value(q[2]), s), expected);
            let (q, s) = run(format, &[f32::NEG_INFINITY, 3.0, f32::NAN]);
            assert!(s == f64::INFINITY && q.iter().all(|&q| format.value(q) == 0.0), "{q:?}");
        }
    }
}
