//! Test cases: sizes, seeds and tolerances that every implementation of an op is held to.

use crate::common::quant::Format;
use crate::{Attrs, Data, Dims, Op, Tensor, Ty};

/// One test case of an op.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name, unique within the op.
    pub name: String,
    /// Attribute values.
    pub attrs: Attrs,
    /// Sizes of the named axes.
    pub dims: Dims,
    /// Seed of the inputs.
    pub seed: u64,
    /// How far each output may be from the reference.
    pub tol: Vec<Tol>,
}

/// How far an output may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tol {
    /// `||a - b|| / ||b||` at most this, and no NaN or infinity where the reference has none.
    Rel(f64, &'static str),
    /// Equal in every element.
    Exact,
    /// Integers at most 1 apart, and only in this share of the elements.
    OffByOne(f64, &'static str),
    /// As [`Tol::Rel`], of the values of E4M3 bytes.
    E4m3(f64, &'static str),
}

impl Tol {
    /// Compares an output with the reference.
    ///
    /// # Errors
    /// What differs: metric, value against bound, worst element.
    pub fn compare(&self, found: &Tensor, expected: &Tensor) -> Result<f64, String> {
        if found.shape != expected.shape {
            return Err(format!("shape {:?}, expected {:?}", found.shape, expected.shape));
        }
        let values = |tensor: &Tensor| match self {
            Tol::E4m3(..) => tensor.as_i8().iter().map(|&q| Format::E4m3.value(q).into()).collect(),
            _ => tensor.to_f64(),
        };
        let (a, b) = (values(found), values(expected));
        let place = || {
            let worst = (0..a.len()).max_by(|&i, &j| (a[i] - b[i]).abs().total_cmp(&(a[j] - b[j]).abs()));
            worst.map(|i| format!("worst at {i}: {} against {}", a[i], b[i])).unwrap_or_default()
        };
        if let Some(i) = (0..a.len()).find(|&i| b[i].is_finite() && !a[i].is_finite()) {
            return Err(format!("element {i} is {}, expected {}", a[i], b[i]));
        }
        match *self {
            Tol::Rel(bound, because) | Tol::E4m3(bound, because) => {
                let error = rel_l2(&a, &b);
                if error <= bound {
                    return Ok(error);
                }
                Err(format!("rel L2 {error:.3e} exceeds {bound:.1e} ({because}); {}", place()))
            }
            Tol::Exact => {
                let count = a.iter().zip(&b).filter(|(x, y)| x != y).count();
                if count == 0 { Ok(0.0) } else { Err(format!("{count} elements differ; {}", place())) }
            }
            Tol::OffByOne(share, because) => {
                let count = a.iter().zip(&b).filter(|(x, y)| x != y).count();
                let far = a.iter().zip(&b).filter(|(x, y)| (**x - **y).abs() > 1.0).count();
                let found = count as f64 / a.len().max(1) as f64;
                if far == 0 && found <= share {
                    return Ok(found);
                }
                Err(format!(
                    "{count} elements differ, {far} by more than 1, allowed {share:.1e} of them ({because}); {}",
                    place()
                ))
            }
        }
    }
}

/// `||a - b|| / ||b||` in f64; the norm of `a` when `b` is zero.
pub fn rel_l2(a: &[f64], b: &[f64]) -> f64 {
    let diff: f64 = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    (diff / if norm > 0.0 { norm } else { 1.0 }).sqrt()
}

/// A small, seedable generator (SplitMix64), the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Standard normal, rounded to bf16 so that every implementation can hold it exactly.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        let x = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        half::bf16::from_f64(x).to_f64()
    }
}

/// Normal floats and uniform i8 for every input: the sample of ops that need nothing special.
pub fn sample_inputs(op: &Op, case: &Case) -> Vec<Tensor> {
    let mut rng = Rng::new(case.seed);
    op.inputs
        .iter()
        .map(|def| {
            let shape: Vec<usize> =
                def.dims.iter().map(|d| d.eval(&case.attrs, &case.dims).unwrap_or(0)).collect();
            let n: usize = shape.iter().product();
            let data = match def.ty {
                Ty::T | Ty::F32 => Data::F64((0..n).map(|_| rng.normal()).collect()),
                Ty::I8 => Data::I8((0..n).map(|_| rng.bits() as i8).collect()),
                Ty::I32 => Data::I32(vec![0; n]),
            };
            Tensor { shape, data }
        })
        .collect()
}

/// Runs every case of an op on its CPU kernel against its reference.
///
/// # Errors
/// The first case that fails, named.
pub fn run_cpu_cases(op: &Op) -> Result<Vec<(String, Vec<f64>)>, String> {
    (op.cases)()
        .iter()
        .map(|case| {
            let name = format!("{} case {}", op.name, case.name);
            let inputs = (op.sample)(case);
            let expected = (op.reference)(&case.attrs, &inputs);
            let kernel: Vec<Tensor> = inputs.iter().map(Tensor::for_kernel).collect();
            let views: Vec<_> = kernel.iter().map(Tensor::view).collect();
            let found = op.run(&case.attrs, &views).map_err(|e| format!("{name}: {e}"))?;
            let errors: Result<Vec<f64>, String> = (found.iter().zip(&expected).zip(&case.tol))
                .zip(op.outputs)
                .map(|(((f, e), tol), def)| {
                    tol.compare(f, e).map_err(|what| format!("{name}, output `{}`: {what}", def.name))
                })
                .collect();
            Ok((name, errors?))
        })
        .collect()
}
