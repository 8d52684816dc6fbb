//! `y = activation((q * s) @ (w * ws)^T + bias)`: a linear over 8-bit blocks of 128 x 128.
//!
//! TurboDiffusion `ops/gemm`: the INT32 sums of a block are exact and scaled in f32; see [`crate::common::w8a8`]. E4M3
//! values take the place of INT8 ones on GPUs that multiply them faster.

use turbo_graph::{DType, Graph, Value};

use crate::common::quant::{BLOCK, FORMAT, Format};
use crate::common::simd::Isa;
use crate::common::w8a8::{Block, Epilogue, Operands, STRIP, split};
use crate::quantize;
use crate::schema::DTYPE_ATTR;
use crate::{
    AttrDef, AttrKind, Attrs, Case, Data, Dim, Dims, Op, Rng, Tensor, TensorDef, TensorMut, TensorRef, Tol,
    Ty,
};

/// Rows of activations.
pub const M: Dim = Dim::Axis("m");
/// Outputs.
pub const N: Dim = Dim::Axis("n");
const K: Dim = Dim::Axis("k");
const B128: Dim = Dim::Const(BLOCK);

/// The operands of every W8A8 linear.
pub const INPUTS: [TensorDef; 5] = [
    TensorDef { name: "q", ty: Ty::I8, dims: &[M, K], doc: "activations" },
    TensorDef {
        name: "s",
        ty: Ty::F32,
        dims: &[Dim::CeilDiv(&M, &B128), Dim::CeilDiv(&K, &B128)],
        doc: "activation scale of each 128 x 128 block",
    },
    TensorDef { name: "w", ty: Ty::I8, dims: &[N, K], doc: "weights, one row per output" },
    TensorDef {
        name: "ws",
        ty: Ty::F32,
        dims: &[Dim::CeilDiv(&N, &B128), Dim::CeilDiv(&K, &B128)],
        doc: "weight scale of each 128 x 128 block",
    },
    TensorDef { name: "bias", ty: Ty::F32, dims: &[N], doc: "bias" },
];

/// The activation after the bias.
pub const ACTIVATION: AttrDef = AttrDef {
    name: "activation",
    kind: AttrKind::Choice(&["none", "gelu_tanh"]),
    doc: "applied after the bias; GELU with the tanh approximation",
};

/// The op.
pub const OP: Op = Op {
    name: "TurboW8A8Linear",
    version: 2,
    summary: "y = activation((q * s) @ (w * ws)^T + bias)",
    doc: "acc = fma(sum of q * w over a 128-wide block of K, s * ws, acc) over the blocks in ascending order, in f32; \
          then the bias, then the activation. K may end inside a block. `format` int8: the sum of a block is INT32, \
          exact, converted to f32. e4m3: `q` and `w` are bytes of E4M3 values, whose products are exact in f32; in what \
          order the products of a block are added, and with how many bits, is free: tensor cores keep few. A byte that \
          is NaN makes every sum that it is part of NaN.",
    attrs: &[ACTIVATION, DTYPE_ATTR, FORMAT],
    inputs: &INPUTS,
    outputs: &[TensorDef { name: "y", ty: Ty::T, dims: &[M, N], doc: "outputs" }],
    constraint: has_inputs,
    reference,
    cpu,
    expand: Some(expand),
    sample,
    cases,
};

/// A linear without inputs has no weights to lay out.
pub fn has_inputs(_: &Attrs, dims: &Dims) -> Result<(), String> {
    if dims.get("k") > 0 { Ok(()) } else { Err("axis `k` is 0".to_string()) }
}

/// `(q * s) @ (w * ws)^T + bias` in f64, then the activation.
pub fn reference_linear(attrs: &Attrs, inputs: &[Tensor]) -> Vec<f64> {
    let (m, k, n) = (inputs[0].shape[0], inputs[0].shape[1], inputs[2].shape[0]);
    let (tiles, format) = (k.div_ceil(BLOCK), Format::of(attrs));
    let (q, s, w, ws) = (inputs[0].as_i8(), inputs[1].as_f64(), inputs[2].as_i8(), inputs[3].as_f64());
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let mut sum = inputs[4].as_f64()[j];
            for x in 0..k {
                let scale = s[i / BLOCK * tiles + x / BLOCK] * ws[j / BLOCK * tiles + x / BLOCK];
                sum += f64::from(format.value(q[i * k + x])) * f64::from(format.value(w[j * k + x])) * scale;
            }
            y[i * n + j] = if gelu(attrs) { reference_gelu(sum) } else { sum };
        }
    }
    y
}

/// GELU with the tanh approximation.
pub fn reference_gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

fn reference(attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    let shape = [inputs[0].shape[0], inputs[2].shape[0]];
    vec![Tensor::f64(&shape, reference_linear(attrs, inputs))]
}

/// Whether the tanh GELU follows.
pub fn gelu(attrs: &Attrs) -> bool {
    attrs.get_choice("activation") == "gelu_tanh"
}

/// Copies outputs to where they belong.
pub struct Store;

impl Epilogue for Store {
    type Out<'o> = Vec<&'o mut [f32]>;

    #[inline(always)]
    fn finish<I: Isa>(&self, out: &mut Self::Out<'_>, block: &Block<'_>) {
        for (out, row) in out.iter_mut().zip(block.rows()) {
            let out = &mut out[block.offset()..][..block.width];
            out.iter_mut().zip(row).for_each(|(y, v)| *y = *v);
        }
    }
}

fn cpu(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let x = Operands::of(attrs, inputs, gelu(attrs));
    x.compute(split(outputs[0].f32(), x.n, BLOCK, STRIP), &Store);
}

/// The linear in standard operators, f32 `[m, n]`.
pub fn expand_linear(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Value {
    let format = Format::of(attrs);
    let x = quantize::expand_dequantize(g, format, inputs[0], inputs[1]);
    let w = quantize::expand_dequantize(g, format, inputs[2], inputs[3]);
    let y = g.gemm(x, w, Some(inputs[4]));
    if gelu(attrs) { g.gelu_tanh(y) } else { y }
}

/// The same in the type that `dtype` says.
pub fn expand_to(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Value {
    let y = expand_linear(g, attrs, inputs);
    let dtype = match attrs.get_choice(DTYPE_ATTR.name) {
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        _ => DType::F32,
    };
    g.cast(y, dtype)
}

fn expand(g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
    vec![expand_to(g, attrs, inputs)]
}

/// Values of all inputs of a W8A8 op: any bytes that are numbers, scales that keep outputs near one.
pub fn sample_op(op: &Op, case: &Case) -> Vec<Tensor> {
    let mut rng = Rng::new(case.seed);
    let (k, format) = (case.dims.get("k") as f64, Format::of(&case.attrs));
    // Root mean square of the bytes.
    let size = if format == Format::Int8 { 74.0 } else { 100.0 };
    let mut tensors = crate::cases::sample_inputs(op, case);
    for (def, tensor) in op.inputs.iter().zip(&mut tensors) {
        match (def.name, &mut tensor.data) {
            ("s" | "ws" | "wqs" | "wks" | "wvs", Data::F64(values)) => {
                let unit = if def.name == "s" { 1.0 / size } else { 1.0 / (size * k.sqrt()) };
                values.iter_mut().for_each(|v| *v = f64::from(((0.5 + rng.uniform()) * unit) as f32));
            }
            (_, Data::I8(bytes)) => {
                bytes.iter_mut().filter(|byte| format.value(**byte).is_nan()).for_each(|byte| *byte &= 0x3f);
            }
            _ => {}
        }
    }
    tensors
}

fn sample(case: &Case) -> Vec<Tensor> {
    sample_op(&OP, case)
}

/// How far from the reference the outputs of a linear may be before they are rounded.
pub fn linear_tol(format: Format) -> Tol {
    match format {
        Format::Int8 => Tol::Rel(2e-6, "f32 sums of exact blocks"),
        Format::E4m3 => Tol::Rel(3e-3, "tensor cores cut products off 13 bits below the largest of a block"),
    }
}

/// Sizes that every W8A8 op is tested on, in both formats; `more` are further axes.
pub fn linear_cases(
    attrs: &[Attrs],
    more: &[(&'static str, usize)],
    tol: impl Fn(Format) -> Vec<Tol>,
) -> Vec<Case> {
    let sizes = [
        ("one value", [1, 1, 1]),
        ("one row", [1, 130, 256]),
        ("ragged", [132, 70, 200]),
        ("blocks", [128, 256, 384]),
        ("within a block", [300, 128, 144]),
        ("large", [300, 384, 512]),
    ];
    let case = |format: Format, (i, attrs): (usize, &Attrs), (name, [m, n, k]): (&str, [usize; 3])| {
        let mut dims = vec![("m", m), ("n", n), ("k", k)];
        dims.extend(more);
        Case {
            name: format!("{name} {i} {}", format.word()),
            attrs: attrs.clone().choice(FORMAT.name, format.word()),
            dims: Dims::of(&dims),
            seed: 3 + i as u64,
            tol: tol(format),
        }
    };
    let of = |format| attrs.iter().enumerate().flat_map(move |a| sizes.map(|size| (format, a, size)));
    [Format::Int8, Format::E4m3].into_iter().flat_map(of).map(|(f, a, size)| case(f, a, size)).collect()
}

fn cases() -> Vec<Case> {
    let attrs = |a: &str| Attrs::new().choice("activation", a).choice("dtype", "f32");
    linear_cases(&[attrs("none"), attrs("gelu_tanh")], &[], |format| vec![linear_tol(format)])
}

#[cfg(test)]
mod tests {
    use crate::Tensor;

    #[test]
    fn kernel_agrees_with_the_reference() {
        // The kernel adds E4M3 products in f32, which the cases do not ask of tensor cores.
        for (name, errors) in crate::cases::run_cpu_cases(&super::OP).unwrap() {
            assert!(errors[0] < 2e-6, "{name}: {errors:?}");
        }
    }

    #[test]
    fn a_byte_that_is_no_number_shows() {
        let case = (super::OP.cases)().into_iter().find(|case| case.name == "ragged 0 e4m3").unwrap();
        let mut inputs = (super::OP.sample)(&case).iter().map(Tensor::for_kernel).collect::<Vec<_>>();
        let crate::Data::I8(bytes) = &mut inputs[0].data else { panic!("no bytes") };
        bytes[case.dims.get("k") * 7] = 0x7f;
        let views: Vec<_> = inputs.iter().map(Tensor::view).collect();
        let y = super::OP.run(&case.attrs, &views).unwrap().remove(0).to_f64();
        for (row, y) in y.chunks(case.dims.get("n")).enumerate() {
            assert!(y.iter().all(|y| y.is_nan() == (row == 7)), "row {row}");
        }
    }
}
