//! Single ops against what the reference's own code and GPU kernels computed: quantisation and the INT8 product.

use anyhow::{Context, Result, ensure};
use turbo_graph::{DType, Graph};
use turbo_ops::{Attrs, Ty};
use turbo_pipeline::backend::Tensor;

use super::backend::Backend;
use crate::vectors::{Family, Vectors};

/// Side of a quantisation block.
const BLOCK: usize = 128;

/// Runs one node of an op, its inputs and outputs those of the graph; gives its outputs in their order. Inputs beyond those
/// that it has are left out.
pub(super) fn op(
    backend: &dyn Backend,
    name: &str,
    attrs: &Attrs,
    inputs: &[&Tensor],
) -> Result<Vec<Vec<f32>>> {
    let op = turbo_ops::find(name).with_context(|| format!("no op {name}"))?;
    let mut g = Graph::new(name);
    let values: Vec<_> = (op.inputs.iter().zip(inputs))
        .map(|(def, tensor)| {
            let dtype = match def.ty {
                Ty::T => backend.compute(),
                Ty::F32 => DType::F32,
                Ty::I8 => DType::I8,
                Ty::I32 => DType::I32,
            };
            g.input(def.name, dtype, &tensor.shape)
        })
        .collect();
    let output = |name: &str| format!("{name}_out");
    for (def, value) in op.outputs.iter().zip(op.node(&mut g, attrs, &values)) {
        g.output(&output(def.name), value);
    }
    let named: Vec<_> = op.inputs.iter().map(|def| def.name).zip(inputs.iter().copied()).collect();
    let out = backend.load(None, g.finish()?, &[])?.run(&named)?;
    op.outputs.iter().map(|def| out.get(&output(def.name))).collect()
}

fn i8s(v: &Vectors, name: &str) -> Result<Tensor> {
    let (shape, values) = v.i64(name)?;
    let values = values.into_iter().map(i8::try_from).collect::<Result<_, _>>();
    Ok(Tensor::i8(shape, values.with_context(|| format!("{name} is not INT8"))?))
}

/// The largest; NaN if there is one, which `max` would drop.
fn largest_or_nan(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

/// Quantised values that differ from the stored ones, by their places and how far they are off.
fn differing(found: &[f32], stored: &Tensor) -> Result<Vec<(usize, f32)>> {
    let stored = stored.as_i8();
    ensure!(found.len() == stored.len(), "{} values, expected {}", found.len(), stored.len());
    let pairs = found.iter().zip(stored).enumerate();
    Ok(pairs.map(|(i, (a, &b))| (i, a - f32::from(b))).filter(|(_, off)| *off != 0.0).collect())
}

/// The format of all vectors.
fn int8() -> Attrs {
    Attrs::new().choice("format", "int8")
}

/// The W8A8 linear of stored operands of case `case`; no bias where `bias` is `None`.
fn linear(backend: &dyn Backend, v: &Vectors, case: &str, bias: Option<Tensor>) -> Result<Vec<f32>> {
    let name = |leaf: &str| format!("{case}.{leaf}");
    let (q, w) = (i8s(v, &name("x_q"))?, i8s(v, &name("w_q"))?);
    let n = w.shape[0];
    let bias = bias.unwrap_or_else(|| Tensor::f32(vec![n], vec![0.0; n]));
    let attrs = int8().choice("activation", "none").choice("dtype", backend.compute().name());
    let inputs = [&q, &v.f32(&name("x_s"))?, &w, &v.f32(&name("w_s"))?, &bias];
    Ok(op(backend, "TurboW8A8Linear", &attrs, &inputs)?.swap_remove(0))
}

/// `TurboQuantize`: values and scales.
fn quantize(backend: &dyn Backend, x: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut out = op(backend, "TurboQuantize", &int8(), &[x])?;
    let scales = out.pop().context("no scales")?;
    Ok((out.pop().context("no values")?, scales))
}

/// As the reference's CUDA source says, computed on the CPU.
pub(super) fn w8a8(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("w8a8.safetensors")?;
    for name in ["a.x", "a.w", "b.x", "b.w", "tie.x"] {
        family.attempt(name, |family| {
            let x = v.f32(name)?;
            let (q, s) = quantize(backend, &x)?;
            let scales = v.f32(&format!("{name}_s"))?;
            family.holds(&format!("{name}: scales are exact"), s == scales.as_f32());
            let wrong = differing(&q, &i8s(&v, &format!("{name}_q"))?)?;
            // In f32 a product this close to a half may land on either side of it.
            let near_half = |i: usize| {
                let (row, column, width) = (i / x.shape[1], i % x.shape[1], scales.shape[1]);
                let scale = scales.as_f32()[row / BLOCK * width + column / BLOCK];
                let turned = f64::from(x.as_f32()[i]) / f64::from(scale);
                (turned - turned.floor() - 0.5).abs() < 1e-5
            };
            let bad = wrong.iter().filter(|(i, off)| off.abs() > 1.0 || !near_half(*i)).count();
            println!("{name}: {} values off by one at ties, {bad} elsewhere", wrong.len() - bad);
            family.value(&format!("{name}: wrong values"), bad as f64, 0.0);
            Ok(())
        });
    }
    for case in ["a", "b"] {
        let name = format!("{case}.y_f32");
        family.attempt(&name, |family| {
            let expected = v.values(&name)?;
            let y = linear(backend, &v, case, None)?;
            ensure!(y.len() == expected.len(), "{} values, expected {}", y.len(), expected.len());
            let largest = expected.iter().fold(0.0, |m: f32, y| m.max(y.abs()));
            let off = y.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
            let furthest = largest_or_nan(off) / f64::from(largest);
            // A result in bf16 is rounded by up to 2^-8 of itself.
            family.value(&format!("{name}, furthest"), furthest, backend.bound(1e-6, 4e-3));
            Ok(())
        });
    }
    family.attempt("a.y_linear_bf16", |family| {
        // The stored sum was rounded to bf16 before the bias and again after it.
        let y = linear(backend, &v, "a", Some(v.f32("a.bias")?))?;
        family.rel("a.y_linear_bf16", &y, &v.values("a.y_linear_bf16")?, 4e-3);
        Ok(())
    });
    Ok(())
}

/// What the reference's GPU kernels gave.
pub(super) fn gpu_linear(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("gpu/ops.safetensors")?;
    for case in (0..).map(|i| format!("lin{i}")).take_while(|case| v.has(&format!("{case}.x"))) {
        for side in ["x", "w"] {
            let name = format!("{case}.{side}");
            family.attempt(&name, |family| {
                let (q, s) = quantize(backend, &v.f32(&name)?)?;
                let scales = v.values(&format!("{name}_s"))?;
                ensure!(s.len() == scales.len(), "{} scales, expected {}", s.len(), scales.len());
                let off = s.iter().zip(&scales).map(|(a, b)| f64::from((a - b).abs() / b));
                family.value(&format!("{name}_s"), largest_or_nan(off), 1e-6);
                // The reference builds with fast maths: its 128 / amax is approximate.
                let wrong = differing(&q, &i8s(&v, &format!("{name}_q"))?)?;
                let share = wrong.len() as f64 / q.len() as f64;
                println!("{name}_q: {} values differ, {:.3} %", wrong.len(), 100.0 * share);
                let by_one = wrong.iter().all(|(_, off)| off.abs() == 1.0);
                family.holds(&format!("{name}_q is at most 1 off"), by_one);
                family.value(&format!("{name}_q, share that differs"), share, 5e-3);
                Ok(())
            });
        }
        let name = format!("{case}.y");
        family.attempt(&name, |family| {
            let y = linear(backend, &v, &case, None)?;
            family.rel(&name, &y, &v.values(&name)?, 5e-3);
            Ok(())
        });
    }
    Ok(())
}
