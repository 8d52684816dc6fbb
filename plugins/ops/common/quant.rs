//! 8-bit values and f32 scales of 128 x 128 blocks.
//!
//! INT8 as in TurboDiffusion `ops/quant/quant.hpp`: `amax` over the block, at least 1e-8; `scale = amax / 128`;
//! `q = sat8(rne(x * (128 / amax)))`, so `+amax` becomes 127 and `-amax` becomes -128. E4M3 is the same with 448, its
//! largest value, in place of 128: `q = e4m3(x * (448 / amax))`.

use rayon::prelude::*;

use super::f8;
use super::simd::{Isa, LANES, Work, dispatch};
use crate::{AttrDef, AttrKind, Attrs};

/// Rows and columns of a block.
pub const BLOCK: usize = 128;
/// Least magnitude that a block is scaled by.
const FLOOR: f32 = 1e-8;
/// A number this large has no fraction bits left: adding it rounds to the nearest integer, ties to even, and leaves
/// that in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// What a byte of quantised values means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A whole number from -128 to 127.
    Int8,
    /// FP8 E4M3.
    E4m3,
}

/// The attribute by which every op that makes or takes quantised values says their format.
pub const FORMAT: AttrDef = AttrDef {
    name: "format",
    kind: AttrKind::Choice(&["int8", "e4m3"]),
    doc: "what the bytes of quantised values are: integers, or FP8 E4M3 in tensors of integers",
};

impl Format {
    /// What the attribute says.
    pub fn of(attrs: &Attrs) -> Self {
        if attrs.get_choice(FORMAT.name) == Format::E4m3.word() { Format::E4m3 } else { Format::Int8 }
    }

    /// The word of the attribute.
    pub fn word(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::E4m3 => "e4m3",
        }
    }

    /// What the largest magnitude of a block is scaled to.
    pub fn full(self) -> f32 {
        match self {
            Format::Int8 => 128.0,
            Format::E4m3 => f8::MAX,
        }
    }

    /// The value of a byte.
    pub fn value(self, q: i8) -> f32 {
        match self {
            Format::Int8 => f32::from(q),
            Format::E4m3 => f8::VALUES[usize::from(q as u8)],
        }
    }
}

/// Quantises `x [m, k]` into `q [m, k]` and `s [ceil(m/128), ceil(k/128)]`.
pub fn quantize(format: Format, x: &[f32], [m, k]: [usize; 2], q: &mut [i8], s: &mut [f32]) {
    if m * k == 0 {
        return;
    }
    let tiles = k.div_ceil(BLOCK);
    x.par_chunks(BLOCK * k)
        .zip(q.par_chunks_mut(BLOCK * k))
        .zip(s.par_chunks_mut(tiles))
        .for_each(|((x, q), s)| quantize_rows(format, x, k, q, s));
}

/// Quantises up to 128 rows: one row of blocks.
pub fn quantize_rows(format: Format, x: &[f32], k: usize, q: &mut [i8], s: &mut [f32]) {
    dispatch(Rows { format, x, k, q, s });
}

struct Rows<'a> {
    format: Format,
    x: &'a [f32],
    k: usize,
    q: &'a mut [i8],
    s: &'a mut [f32],
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Rows { format, x, k, q, s } = self;
        for (tile, scale) in s.iter_mut().enumerate() {
            let columns = tile * BLOCK..k.min((tile + 1) * BLOCK);
            let rows = x.chunks_exact(k).map(|row| &row[columns.clone()]);
            let outs = q.chunks_exact_mut(k).map(|row| &mut row[columns.clone()]);
            *scale = quantize_block(format, rows, outs);
        }
    }
}

/// Quantises the rows of one block and gives its scale.
#[inline(always)]
pub fn quantize_block<'a, 'b>(
    format: Format,
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
    let factor = format.full() / amax;
    for (row, out) in rows.zip(outs) {
        match format {
            Format::Int8 => {
                for (q, &v) in out.iter_mut().zip(row) {
                    let v = v * factor;
                    let v = if v.is_nan() { 0.0 } else { v };
                    let v = if v > 127.0 { 127.0 } else { v };
                    let v = if v < -128.0 { -128.0 } else { v };
                    *q = (v + MAGIC).to_bits() as i8;
                }
            }
            Format::E4m3 => {
                for (q, &v) in out.iter_mut().zip(row) {
                    *q = f8::to_byte(v * factor) as i8;
                }
            }
        }
    }
    amax / format.full()
}
