//! Softmax attention of one block of queries with a list of key blocks, and the linear attention branch.
//!
//! The contract of the SageAttention form (SageAttention2, arXiv:2411.10958, as TurboDiffusion runs it through
//! SpargeAttn): keys have their mean over all tokens subtracted; queries and keys become INT8 per block with
//! `scale = max|x| / 127 + 1e-7` and rounding half away from zero; the sums are exact. Probabilities are
//! `2^(s - max + 8.807)` in E4M3 with values in E4M3 per channel at `scale = max|v| / 2.25`, or both in f16
//! without offset. The denominator sums the probabilities before rounding. `max` is the row's maximum over all its
//! kept keys; the order of sums and the width of accumulators are not part of the contract.

use half::f16;
use rayon::prelude::*;

use super::f8::round_e4m3;
use crate::{Attrs, TensorRef};

/// Lifts probabilities to the top of the E4M3 range: `2^8.807` is about 448.
const FP8_OFFSET: f32 = 8.807;
/// Largest magnitude of scaled FP8 values, so that sums also fit f16 accumulators.
const FP8_VALUE_MAX: f32 = 2.25;
/// Keeps the linear branch's denominator away from zero.
pub const LINEAR_EPS: f32 = 1e-5;

/// Arithmetic of the softmax branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the activation type.
    Exact,
    /// INT8 queries and keys, E4M3 probabilities and values.
    SageFp8,
    /// INT8 queries and keys, f16 probabilities and values.
    SageF16,
}

impl Form {
    /// From the `pv` attribute.
    pub fn sage(attrs: &Attrs) -> Form {
        if attrs.get_choice("pv") == "f16" { Form::SageF16 } else { Form::SageFp8 }
    }
}

/// One head's `[l, d]` rows taken out of `[b, l, heads * d]`.
pub fn head(x: &TensorRef<'_>, heads: usize, b: usize, h: usize) -> Vec<f32> {
    let (l, c) = (x.shape[1], x.shape[2]);
    let d = c / heads;
    let rows = x.f32()[b * l * c..(b + 1) * l * c].chunks_exact(c);
    rows.flat_map(|row| &row[h * d..(h + 1) * d]).copied().collect()
}

/// Mean of the rows, summed in f64.
pub fn mean(x: &[f32], d: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; d];
    for row in x.chunks_exact(d) {
        sum.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
    }
    let n = (x.len() / d).max(1) as f64;
    sum.iter().map(|s| (s / n) as f32).collect()
}

/// INT8 values, held as f32, of blocks of rows; gives the scale of each block.
fn quantize(x: &mut [f32], d: usize, block: usize) -> Vec<f32> {
    x.chunks_mut(block * d)
        .map(|tile| {
            let scale = tile.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0 + 1e-7;
            tile.iter_mut().for_each(|v| {
                let q = *v / scale;
                *v = (q + 0.5f32.copysign(q)).trunc();
            });
            scale
        })
        .collect()
}

/// Keys, values and scales of one head, ready for every query block.
pub struct Prepared {
    form: Form,
    d: usize,
    block_q: usize,
    block_k: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_scale: Vec<f32>,
    k_scale: Vec<f32>,
    v_scale: Vec<f32>,
}

impl Prepared {
    /// Takes one head's queries `[l, d]`, keys and values `[s, d]`.
    pub fn new(form: Form, [q, k, v]: [Vec<f32>; 3], d: usize, block_q: usize, block_k: usize) -> Self {
        let (blocks_q, blocks_k) = (q.len().div_ceil(d * block_q), k.len().div_ceil(d * block_k));
        let mut p = Prepared {
            form,
            d,
            block_q,
            block_k,
            q,
            k,
            v,
            q_scale: vec![1.0; blocks_q],
            k_scale: vec![1.0; blocks_k],
            v_scale: vec![1.0; d],
        };
        if form != Form::Exact {
            let mean = mean(&p.k, d);
            for row in p.k.chunks_exact_mut(d) {
                row.iter_mut().zip(&mean).for_each(|(k, m)| *k -= m);
            }
            p.q_scale = quantize(&mut p.q, d, block_q);
            p.k_scale = quantize(&mut p.k, d, block_k);
        }
        match form {
            Form::Exact => {}
            Form::SageF16 => p.v.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            Form::SageFp8 => {
                let mut amax = vec![0.0f32; d];
                for row in p.v.chunks_exact(d) {
                    amax.iter_mut().zip(row).for_each(|(a, v)| *a = a.max(v.abs()));
                }
                p.v_scale = amax.iter().map(|a| a / FP8_VALUE_MAX).collect();
                for row in p.v.chunks_exact_mut(d) {
                    for (v, &amax) in row.iter_mut().zip(&amax) {
                        *v = if amax > 0.0 { round_e4m3(*v * (FP8_VALUE_MAX / amax)) } else { 0.0 };
                    }
                }
            }
        }
        p
    }

    /// Attention of query block `block` with the key blocks in `keys`; writes `[rows, d]`.
    pub fn attend(&self, block: usize, keys: &[usize], out: &mut [f32]) {
        let d = self.d;
        let first = block * self.block_q;
        let q = &self.q[first * d..(first * d + out.len())];
        // In base 2, as the kernels compute it.
        let unit = std::f32::consts::LOG2_E / (d as f32).sqrt();
        let span = |&block: &usize| block * self.block_k..((block + 1) * self.block_k).min(self.k.len() / d);
        let mut scores = Vec::new();
        for (q, out) in q.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            scores.clear();
            for key in keys {
                let factor = unit * self.q_scale[block] * self.k_scale[*key];
                let rows = span(key);
                let rows = self.k[rows.start * d..rows.end * d].chunks_exact(d);
                scores.extend(rows.map(|k| dot(q, k) * factor));
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let offset = if self.form == Form::SageFp8 { FP8_OFFSET } else { 0.0 };
            let mut denominator = 0.0;
            for score in &mut scores {
                let p = (*score - max + offset).exp2();
                denominator += p;
                *score = match self.form {
                    Form::Exact => p,
                    Form::SageFp8 => round_e4m3(p),
                    Form::SageF16 => f16::from_f32(p).to_f32(),
                };
            }
            out.fill(0.0);
            let mut scores = scores.iter();
            for key in keys {
                let rows = span(key);
                let rows = self.v[rows.start * d..rows.end * d].chunks_exact(d);
                for (v, &p) in rows.zip(scores.by_ref()) {
                    out.iter_mut().zip(v).for_each(|(o, &v)| *o += p * v);
                }
            }
            out.iter_mut().zip(&self.v_scale).for_each(|(o, &s)| *o *= s / denominator);
        }
    }
}

/// Dot product in eight lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.0.iter().zip(b8.0) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let tail: f32 = a8.1.iter().zip(b8.1).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + tail
}

/// Softmax of each row of `[l, d]`, in place: the feature map of the linear branch.
pub fn softmax_rows(x: &mut [f32], d: usize) {
    x.par_chunks_exact_mut(d).for_each(|row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    });
}

/// The linear branch through `proj_l`: `phi(q) (phi(k)^T v) / (1e-5 + phi(q) . sum phi(k)) W^T + b`, `[l, d]`.
pub fn linear_branch([mut q, mut k, v]: [Vec<f32>; 3], d: usize, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    softmax_rows(&mut q, d);
    softmax_rows(&mut k, d);
    // phi(k)^T v, one row of d values per feature; and the sum of phi(k).
    let mut kv = vec![0.0f32; d * d];
    let mut sum = vec![0.0f32; d];
    kv.par_chunks_exact_mut(d).zip(sum.par_iter_mut()).enumerate().for_each(|(i, (row, sum))| {
        for (k, v) in k.chunks_exact(d).zip(v.chunks_exact(d)) {
            *sum += k[i];
            row.iter_mut().zip(v).for_each(|(o, &v)| *o += k[i] * v);
        }
    });
    // The projection is linear, so it goes into the d x d matrix: (kv W^T)[i][j] = sum_x kv[i][x] W[j][x].
    let mut projected = vec![0.0f32; d * d];
    projected.par_chunks_exact_mut(d).zip(kv.par_chunks_exact(d)).for_each(|(out, kv)| {
        out.iter_mut().zip(weight.chunks_exact(d)).for_each(|(o, w)| *o = dot(kv, w));
    });
    let mut out = vec![0.0f32; q.len()];
    out.par_chunks_exact_mut(d).zip(q.par_chunks_exact(d)).for_each(|(out, q)| {
        for (&q, row) in q.iter().zip(projected.chunks_exact(d)) {
            out.iter_mut().zip(row).for_each(|(o, &m)| *o += q * m);
        }
        let factor = 1.0 / (LINEAR_EPS + dot(q, &sum));
        out.iter_mut().zip(bias).for_each(|(o, &b)| *o = o.mul_add(factor, b));
    });
    out
}

/// Runs `work(b, h, query block, out rows)` for every query block and lays `[l, d]` heads out as `[b, l, c]`.
pub fn for_each_block(
    out: &mut [f32],
    [b, l, c]: [usize; 3],
    heads: usize,
    block_q: usize,
    work: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
) {
    let d = c / heads;
    let blocks = l.div_ceil(block_q);
    for batch in 0..b {
        for h in 0..heads {
            let results: Vec<Vec<f32>> = (0..blocks)
                .into_par_iter()
                .map(|block| {
                    let rows = block_q.min(l - block * block_q);
                    let mut part = vec![0.0; rows * d];
                    work(batch, h, block, &mut part);
                    part
                })
                .collect();
            for (row, values) in results.iter().flat_map(|part| part.chunks_exact(d)).enumerate() {
                out[(batch * l + row) * c + h * d..][..d].copy_from_slice(values);
            }
        }
    }
}
