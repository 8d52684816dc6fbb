//! INT8 values and f32 scales of 128 x 128 blocks.
//!
//! TurboDiffusion `ops/quant/quant.hpp`: `amax` over the block, at least 1e-8; `scale = amax / 128`;
//! `q = sat8(rne(x * (128 / amax)))`, so `+amax` becomes 127 and `-amax` becomes -128.

use rayon::prelude::*;

/// Rows and columns of a block.
pub const BLOCK: usize = 128;
/// Least magnitude that a block is scaled by.
const FLOOR: f32 = 1e-8;

/// Quantises `x [m, k]` into `q [m, k]` and `s [ceil(m/128), ceil(k/128)]`.
pub fn quantize(x: &[f32], m: usize, k: usize, q: &mut [i8], s: &mut [f32]) {
    if m * k == 0 {
        return;
    }
    let tiles = k.div_ceil(BLOCK);
    x.par_chunks(BLOCK * k)
        .zip(q.par_chunks_mut(BLOCK * k))
        .zip(s.par_chunks_mut(tiles))
        .for_each(|((x, q), s)| quantize_rows(x, k, q, s));
}

/// Quantises up to 128 rows: one row of blocks.
pub fn quantize_rows(x: &[f32], k: usize, q: &mut [i8], s: &mut [f32]) {
    let mut factors = vec![0.0f32; s.len()];
    for row in x.chunks(k) {
        for (amax, tile) in factors.iter_mut().zip(row.chunks(BLOCK)) {
            *amax = tile.iter().fold(*amax, |a, &v| a.max(v.abs()));
        }
    }
    for (factor, scale) in factors.iter_mut().zip(s.iter_mut()) {
        let amax = factor.max(FLOOR);
        *scale = amax / 128.0;
        *factor = 128.0 / amax;
    }
    for (row, out) in x.chunks(k).zip(q.chunks_mut(k)) {
        for ((tile, out), &factor) in row.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(&factors) {
            for (q, &v) in out.iter_mut().zip(tile) {
                *q = (v * factor).round_ties_even().clamp(-128.0, 127.0) as i8;
            }
        }
    }
}
