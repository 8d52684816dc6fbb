//! INT8 values and f32 scales of 128 x 128 blocks.
//!
//! TurboDiffusion `ops/quant/quant.hpp`: `amax` over the block, at least 1e-8; `scale = amax / 128`;
//! `q = sat8(rne(x * (128 / amax)))`, so `+amax` becomes 127 and `-amax` becomes -128.

use rayon::prelude::*;

use super::simd::{Isa, LANES, Work, dispatch};

/// Rows and columns of a block.
pub const BLOCK: usize = 128;
/// Least magnitude that a block is scaled by.
const FLOOR: f32 = 1e-8;
/// A number this large has no fraction bits left: adding it rounds to the nearest integer, ties to even, and leaves
/// that in the low bits.
const MAGIC: f32 = 12_582_912.0;

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
    dispatch(Rows { x, k, q, s });
}

struct Rows<'a> {
    x: &'a [f32],
    k: usize,
    q: &'a mut [i8],
    s: &'a mut [f32],
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Rows { x, k, q, s } = self;
        for (tile, scale) in s.iter_mut().enumerate() {
            let columns = tile * BLOCK..k.min((tile + 1) * BLOCK);
            let rows = x.chunks_exact(k).map(|row| &row[columns.clone()]);
            let outs = q.chunks_exact_mut(k).map(|row| &mut row[columns.clone()]);
            *scale = quantize_block(rows, outs);
        }
    }
}

/// Quantises the rows of one block and gives its scale.
#[inline(always)]
pub fn quantize_block<'a, 'b>(
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    outs: impl Iterator<Item = &'b mut [i8]>,
) -> f32 {
    let mut top = [FLOOR; LANES];
    for row in rows.clone() {
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (top, v) in top.iter_mut().zip(chunk) {
                *top = if v.abs() > *top { v.abs() } else { *top };
            }
        }
        top[0] = rest.iter().fold(top[0], |a, v| a.max(v.abs()));
    }
    let amax = top.iter().fold(FLOOR, |a, &v| a.max(v));
    let factor = 128.0 / amax;
    for (row, out) in rows.zip(outs) {
        for (q, &v) in out.iter_mut().zip(row) {
            let v = v * factor;
            let v = if v > 127.0 { 127.0 } else { v };
            let v = if v < -128.0 { -128.0 } else { v };
            *q = (v + MAGIC).to_bits() as i8;
        }
    }
    amax / 128.0
}
