//! INT8 matrix product with f32 block scales.
//!
//! `acc = fma(float(int32 dot of 128 columns), x_scale * w_scale, acc)` over the blocks of K in ascending order:
//! the sums within a block are exact, so the result does not depend on the processor or the number of threads.

use rayon::prelude::*;

use super::quant::BLOCK;
use crate::TensorRef;

/// Quantised operands of `y = x @ w^T`.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Activations `[m, k]`.
    pub q: &'a [i8],
    /// Activation scales `[ceil(m/128), ceil(k/128)]`.
    pub s: &'a [f32],
    /// Weights `[n, k]`.
    pub w: &'a [i8],
    /// Weight scales `[ceil(n/128), ceil(k/128)]`.
    pub ws: &'a [f32],
    /// Bias `[n]`.
    pub bias: &'a [f32],
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl<'a> Operands<'a> {
    /// The first five inputs of every W8A8 op.
    pub fn of(inputs: &[TensorRef<'a>]) -> Self {
        let [q, s, w, ws, bias] = [0, 1, 2, 3, 4].map(|i| inputs[i]);
        let (n, k) = (w.shape[0], w.shape[1]);
        Operands { q: q.i8(), s: s.f32(), w: w.i8(), ws: ws.f32(), bias: bias.f32(), n, k }
    }

    /// Fills `out` with `rows` rows of sums plus bias, starting at a multiple of 128.
    fn rows(&self, first: usize, out: &mut [f32]) {
        let tiles = self.k.div_ceil(BLOCK);
        let scales = &self.s[first / BLOCK * tiles..][..tiles];
        out.fill(0.0);
        for (r, out) in out.chunks_mut(self.n).enumerate() {
            let a = &self.q[(first + r) * self.k..][..self.k];
            for (c, sum) in out.iter_mut().enumerate() {
                let b = &self.w[c * self.k..][..self.k];
                let ws = &self.ws[c / BLOCK * tiles..][..tiles];
                for (((a, b), &scale), &ws) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).zip(scales).zip(ws) {
                    let dot: i32 = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    *sum = (dot as f32).mul_add(scale * ws, *sum);
                }
                *sum += self.bias[c];
            }
        }
    }

    /// Computes `y [m, n]`, bias included, and hands every 128 rows to `finish(first row, rows)`.
    pub fn compute(&self, y: &mut [f32], finish: impl Fn(usize, &mut [f32]) + Sync) {
        if y.is_empty() {
            return;
        }
        y.par_chunks_mut(BLOCK * self.n).enumerate().for_each(|(i, rows)| {
            self.rows(i * BLOCK, rows);
            finish(i * BLOCK, rows);
        });
    }
}

/// GELU with the tanh approximation.
pub fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    (0.5 * x * (1.0 + inner.tanh())) as f32
}
