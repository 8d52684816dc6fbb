//! Heads taken out of `[b * l, heads * d]` and laid out for the register tiles of [`super::simd`].

use half::f16;
use rayon::prelude::*;

use super::attn::Form;
use super::f8::round_e4m3;
use super::simd::{Isa, LANES, Lanes, PairLanes, ROWS, Work, dispatch};
use crate::TensorRef;

/// Largest magnitude of scaled FP8 values, so that sums also fit f16 accumulators.
pub const FP8_VALUE_MAX: f32 = 2.25;

/// One head's rows of a tensor.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    batch: &'a [f32],
    width: usize,
    offset: usize,
    /// Channels of a head.
    pub d: usize,
    /// Rows.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// Rows of head `head % heads` of batch entry `head / heads`.
    pub fn new(x: &TensorRef<'a>, [batch, heads]: [usize; 2], head: usize) -> Self {
        let (count, width) = (x.shape[0] / batch, x.shape[1]);
        let d = width / heads;
        let batch = &x.f32()[head / heads * count * width..][..count * width];
        Rows { batch, width, offset: head % heads * d, d, count }
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.batch[i * self.width + self.offset..][..self.d]
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let (offset, d) = (self.offset, self.d);
        self.batch.chunks_exact(self.width).map(move |row| &row[offset..offset + d])
    }

    /// Sixteen rows side by side: `d` vectors for every sixteen rows, zero past the end.
    #[inline(always)]
    pub fn panels(&self, first: usize, count: usize) -> Vec<Lanes> {
        let mut panels = vec![[0.0; LANES]; count.div_ceil(LANES) * self.d];
        for (group, panel) in panels.chunks_exact_mut(self.d).enumerate() {
            for lane in 0..LANES.min(count - group * LANES) {
                let row = self.row(first + group * LANES + lane);
                panel.iter_mut().zip(row).for_each(|(x, &v)| x[lane] = v);
            }
        }
        panels
    }
}

/// Rows of blocks in groups of [`ROWS`], the group's six values of one step side by side.
pub struct Tiles<T> {
    data: Vec<[T; ROWS]>,
    /// Steps of a group.
    depth: usize,
    /// Groups of a block.
    groups: usize,
}

impl<T: Copy + Default + Send> Tiles<T> {
    fn new(blocks: usize, groups: usize, depth: usize) -> Self {
        Tiles { data: vec![[T::default(); ROWS]; blocks * groups * depth], depth, groups }
    }

    /// The groups of a block.
    #[inline(always)]
    pub fn tiles(&self, block: usize) -> impl Iterator<Item = &[[T; ROWS]]> {
        let size = self.groups * self.depth;
        self.data[block * size..][..size].chunks_exact(self.depth)
    }

    fn blocks_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [[T; ROWS]]> {
        self.data.par_chunks_mut((self.groups * self.depth).max(1))
    }
}

/// Keys of one head, in groups of six keys.
pub enum Keys {
    /// As they are; a step is a channel.
    Exact(Tiles<f32>),
    /// Smoothed INT8 values and the scale of each block; a step is two channels.
    Int8(Tiles<[i16; 2]>, Vec<f32>),
}

impl Keys {
    /// Lays keys out; their mean smooths those of the SageAttention forms.
    pub fn new(form: Form, keys: Rows<'_>, mean: &[f32], block: usize) -> Self {
        let (d, blocks, groups) = (keys.d, keys.count.div_ceil(block), block.div_ceil(ROWS));
        let size = |index: usize| block.min(keys.count - index * block);
        if form == Form::Exact {
            let mut tiles = Tiles::new(blocks, groups, d);
            tiles.blocks_mut().enumerate().for_each(|(index, tile)| {
                for i in 0..size(index) {
                    let row = keys.row(index * block + i);
                    let group = &mut tile[i / ROWS * d..][..d];
                    group.iter_mut().zip(row).for_each(|(step, &v)| step[i % ROWS] = v);
                }
            });
            return Keys::Exact(tiles);
        }
        let mut tiles = Tiles::new(blocks, groups, d.div_ceil(2));
        let mut scales = vec![0.0; blocks];
        tiles.blocks_mut().zip(&mut scales).enumerate().for_each(|(index, (tile, scale))| {
            let rows = index * block..index * block + size(index);
            dispatch(QuantizeKeys { keys, rows, mean, tile, scale });
        });
        Keys::Int8(tiles, scales)
    }
}

/// Smooths and quantises one block of keys.
struct QuantizeKeys<'a> {
    keys: Rows<'a>,
    rows: std::ops::Range<usize>,
    mean: &'a [f32],
    tile: &'a mut [[[i16; 2]; ROWS]],
    scale: &'a mut f32,
}

impl Work for QuantizeKeys<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let (d, depth) = (self.keys.d, self.keys.d.div_ceil(2));
        let mut smooth = vec![0.0; self.rows.len() * d];
        for (out, i) in smooth.chunks_exact_mut(d).zip(self.rows.clone()) {
            let row = self.keys.row(i).iter().zip(self.mean);
            out.iter_mut().zip(row).for_each(|(o, (&k, &m))| *o = k - m);
        }
        *self.scale = scale(largest(&smooth));
        for (i, row) in smooth.chunks_exact(d).enumerate() {
            let group = &mut self.tile[i / ROWS * depth..][..depth];
            for (step, pair) in group.iter_mut().zip(row.chunks(2)) {
                for (q, &v) in step[i % ROWS].iter_mut().zip(pair) {
                    *q = int8(v, *self.scale);
                }
            }
        }
    }
}

/// INT8 queries of one block in pairs of channels, and their scale.
#[inline(always)]
pub fn quantize_queries(panels: &[Lanes], d: usize) -> (Vec<PairLanes>, f32) {
    let scale = scale(largest(panels.as_flattened()));
    let pairs = panels.chunks_exact(d).flat_map(|panel| panel.chunks(2)).map(|rows| {
        let mut pairs = [[0; 2]; LANES];
        for (half, row) in rows.iter().enumerate() {
            for (pair, &v) in pairs.iter_mut().zip(row) {
                pair[half] = int8(v, scale);
            }
        }
        pairs
    });
    (pairs.collect(), scale)
}

/// `max|x|`, in lanes that compilers turn into vectors.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if v.abs() > *lane { v.abs() } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |a, v| a.max(v.abs()))
}

/// The scale of a block of INT8 values.
#[inline(always)]
fn scale(amax: f32) -> f32 {
    amax / 127.0 + 1e-7
}

/// Rounds half away from zero.
#[inline(always)]
fn int8(x: f32, scale: f32) -> i16 {
    let q = x / scale;
    (q + 0.5f32.copysign(q)) as i32 as i16
}

/// Values of one head, in groups of six channels; a step is a key.
pub struct Values {
    /// The values in the form's type.
    pub tiles: Tiles<f32>,
    /// What each channel is multiplied by afterwards.
    pub scales: Vec<f32>,
    /// Keys of a block.
    pub block: usize,
    count: usize,
}

impl Values {
    /// Lays values out.
    pub fn new(form: Form, values: Rows<'_>, block: usize) -> Self {
        let (d, count) = (values.d, values.count);
        let mut amax = vec![0.0f32; d];
        if form == Form::SageFp8 {
            for row in values.iter() {
                amax.iter_mut().zip(row).for_each(|(a, v)| *a = if v.abs() > *a { v.abs() } else { *a });
            }
        }
        let scales = match form {
            Form::SageFp8 => amax.iter().map(|a| a / FP8_VALUE_MAX).collect(),
            _ => vec![1.0; d],
        };
        // A channel of zeros stays zero.
        let factors: Vec<f32> = amax.iter().map(|&a| if a > 0.0 { FP8_VALUE_MAX / a } else { 0.0 }).collect();
        let round = |channel: usize, v: f32| match form {
            Form::Exact => v,
            Form::SageFp8 => round_e4m3(v * factors[channel]),
            Form::SageF16 => f16::from_f32(v).to_f32(),
        };
        let mut tiles = Tiles::new(count.div_ceil(block), d.div_ceil(ROWS), block);
        tiles.blocks_mut().enumerate().for_each(|(index, tile)| {
            for i in 0..block.min(count - index * block) {
                for (channel, &v) in values.row(index * block + i).iter().enumerate() {
                    tile[channel / ROWS * block + i][channel % ROWS] = round(channel, v);
                }
            }
        });
        Values { tiles, scales, block, count }
    }

    /// Keys of block `index`.
    pub fn size(&self, index: usize) -> usize {
        self.block.min(self.count - index * self.block)
    }
}
