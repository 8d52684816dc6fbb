//! The attention ops in f64, one query at a time.

use half::f16;

use super::attn::Form;
use super::attn_linear::LINEAR_EPS;
use super::f8::round_e4m3;
use super::sums::pooled;
use crate::Tensor;

/// One head's `[l, d]` rows of `[batch * l, heads * d]`.
pub fn head(x: &Tensor, [batch, heads]: [usize; 2], b: usize, h: usize) -> Vec<Vec<f64>> {
    let (l, c) = (x.shape[0] / batch, x.shape[1]);
    let d = c / heads;
    (0..l).map(|i| x.as_f64()[(b * l + i) * c + h * d..][..d].to_vec()).collect()
}

/// Mean of one head's keys, of `count` in a batch entry, from the sums of their rows.
pub fn key_mean(sums: &Tensor, [heads, count]: [usize; 2], b: usize, h: usize) -> Vec<f64> {
    let d = sums.shape[2] / heads;
    pooled(sums.as_f64(), &sums.shape, [b, h * d, d], count, usize::MAX).swap_remove(0)
}

/// `sum a * b`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn quantize(x: &mut [Vec<f64>], block: usize) -> Vec<f64> {
    x.chunks_mut(block)
        .map(|rows| {
            let amax = rows.iter().flatten().fold(0.0f64, |a, v| a.max(v.abs())) as f32;
            let scale = amax / 127.0 + 1e-7;
            for v in rows.iter_mut().flatten() {
                let q = *v as f32 / scale;
                *v = f64::from((q + 0.5f32.copysign(q)).trunc());
            }
            f64::from(scale)
        })
        .collect()
}

/// Softmax attention where query block `i` attends to the key blocks `kept(i)`; the SageAttention forms smooth keys by their
/// mean.
pub fn attend(
    form: Form,
    [mut q, mut k, mut v]: [Vec<Vec<f64>>; 3],
    mean: Option<Vec<f64>>,
    [block_q, block_k]: [usize; 2],
    kept: impl Fn(usize) -> Vec<usize>,
) -> Vec<Vec<f64>> {
    debug_assert_eq!(mean.is_some(), form != Form::Exact);
    let d = q.first().map_or(0, Vec::len);
    let mut q_scale = vec![1.0; q.len().div_ceil(block_q)];
    let mut k_scale = vec![1.0; k.len().div_ceil(block_k)];
    let mut v_scale = vec![1.0; d];
    if let Some(mean) = mean {
        k.iter_mut().for_each(|row| row.iter_mut().zip(&mean).for_each(|(k, m)| *k -= m));
    }
    if form != Form::Exact {
        q_scale = quantize(&mut q, block_q);
        k_scale = quantize(&mut k, block_k);
    }
    if form == Form::SageF16 {
        v.iter_mut().flatten().for_each(|v| *v = f16::from_f64(*v).to_f64());
    }
    if form == Form::SageFp8 {
        for (j, scale) in v_scale.iter_mut().enumerate() {
            let amax = v.iter().fold(0.0f64, |a, row| a.max(row[j].abs()));
            *scale = amax / 2.25;
            for row in &mut v {
                // Factor and product are f32, as in upstream's kernels: values of bf16 often hit ties of E4M3.
                let factor = 2.25f32 / amax as f32;
                row[j] = if amax > 0.0 { f64::from(round_e4m3(row[j] as f32 * factor)) } else { 0.0 };
            }
        }
    }
    let offset = if form == Form::SageFp8 { f64::from(8.807f32) } else { 0.0 };
    let unit = std::f64::consts::LOG2_E / (d as f64).sqrt();
    let rounded = |p: f64| match form {
        Form::Exact => p,
        Form::SageFp8 => f64::from(round_e4m3(p as f32)),
        Form::SageF16 => f16::from_f64(p).to_f64(),
    };
    let row = |(i, q): (usize, &Vec<f64>)| {
        let (mut max, mut sum, mut out) = (f64::MIN, 0.0, vec![0.0; d]);
        for block in kept(i / block_q) {
            let keys = block * block_k..((block + 1) * block_k).min(k.len());
            let score = |j: usize| dot(q, &k[j]) * unit * q_scale[i / block_q] * k_scale[block];
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let top = scores.iter().copied().fold(max, f64::max);
            let shrink = (max - top).exp2();
            (max, sum) = (top, sum * shrink);
            out.iter_mut().for_each(|o| *o *= shrink);
            for (j, score) in keys.zip(scores) {
                let p = (score - max + offset).exp2();
                sum += if form == Form::SageF16 { rounded(p) } else { p };
                out.iter_mut().zip(&v[j]).for_each(|(o, v)| *o += rounded(p) * v);
            }
        }
        out.iter().zip(&v_scale).map(|(o, scale)| o / sum * scale).collect()
    };
    q.iter().enumerate().map(row).collect()
}

/// `phi(q) (phi(k)^T v) / (1e-5 + phi(q) . sum phi(k))`, then `proj_l`.
pub fn linear_branch([q, k, v]: [Vec<Vec<f64>>; 3], weight: &[f64], bias: &[f64]) -> Vec<Vec<f64>> {
    let phi = |x: &Vec<f64>| {
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect::<Vec<f64>>()
    };
    let k: Vec<Vec<f64>> = k.iter().map(phi).collect();
    let d = bias.len();
    let column = |m: &[Vec<f64>], j: usize| m.iter().map(|row| row[j]).collect::<Vec<f64>>();
    let kv: Vec<Vec<f64>> =
        (0..d).map(|i| (0..d).map(|j| dot(&column(&k, i), &column(&v, j))).collect()).collect();
    let sum: Vec<f64> = (0..d).map(|i| column(&k, i).iter().sum()).collect();
    let row = |q: &Vec<f64>| {
        let q = phi(q);
        let denominator = f64::from(LINEAR_EPS) + dot(&q, &sum);
        let o: Vec<f64> = (0..d).map(|j| dot(&q, &column(&kv, j)) / denominator).collect();
        (0..d).map(|j| dot(&o, &weight[j * d..(j + 1) * d]) + bias[j]).collect()
    };
    q.iter().map(row).collect()
}

/// Writes one head's rows into `[batch * l, c]`.
pub fn store(out: &mut [f64], rows: &[Vec<f64>], [l, c]: [usize; 2], b: usize, h: usize) {
    for (i, row) in rows.iter().enumerate() {
        out[(b * l + i) * c + h * row.len()..][..row.len()].copy_from_slice(row);
    }
}
