//! The linear attention branch, `proj_l` included.

use rayon::prelude::*;

use super::attn_pack::Rows;
use super::simd::{Isa, LANES, Lanes, ROWS, Work, dispatch, exp, mul_add, multiply};

/// Keeps the denominator away from zero.
pub const LINEAR_EPS: f32 = 1e-5;

/// Keys that are summed into one state; states are added in order, whatever thread made them.
const SEGMENT: usize = 2048;
/// Keys that are laid out at a time, few enough to stay in the cache.
const CHUNK: usize = 64;

/// What the queries of one head share: the projected sum of keys times values, and the sum of keys.
pub struct Linear {
    /// `phi(k)^T v W^T` in groups of six outputs, a step for each feature.
    projected: Vec<[f32; ROWS]>,
    key_sum: Vec<f32>,
    bias: Vec<f32>,
}

/// Sums over some keys: for every sixteen features, the value channels in groups of six, and the sum of features.
struct Sums {
    products: Vec<[Lanes; ROWS]>,
    features: Vec<Lanes>,
}

impl Linear {
    /// Sums over all keys.
    pub fn new(keys: Rows<'_>, values: Rows<'_>, weight: &[f32], bias: &[f32]) -> Self {
        let d = keys.d;
        let parts: Vec<Sums> = (0..keys.count.div_ceil(SEGMENT))
            .into_par_iter()
            .map(|i| {
                let mut sums = Sums::zero(d);
                let rows = i * SEGMENT..((i + 1) * SEGMENT).min(keys.count);
                dispatch(Segment { keys, values, rows, sums: &mut sums });
                sums
            })
            .collect();
        let mut sums = Sums::zero(d);
        for part in &parts {
            add(sums.products.as_flattened_mut(), part.products.as_flattened());
            add(&mut sums.features, &part.features);
        }
        let mut projected = vec![[0.0; ROWS]; d.div_ceil(ROWS) * d];
        dispatch(Project { sums: &sums, weight, d, projected: &mut projected });
        Linear { projected, key_sum: sums.features.as_flattened()[..d].to_vec(), bias: bias.to_vec() }
    }

    /// Adds the branch of sixteen queries, `d` vectors, to their output.
    #[inline(always)]
    pub fn add<I: Isa>(&self, queries: &[Lanes], out: &mut [[Lanes; ROWS]]) {
        let d = queries.len();
        let mut phi = queries.to_vec();
        let mut max = [f32::MIN; LANES];
        for row in &phi {
            for (max, &v) in max.iter_mut().zip(row) {
                *max = if v > *max { v } else { *max };
            }
        }
        let mut sum = [0.0; LANES];
        for row in &mut phi {
            for i in 0..LANES {
                row[i] = exp::<I>(row[i] - max[i]);
                sum[i] += row[i];
            }
        }
        let mut denominator = [LINEAR_EPS; LANES];
        for (row, &key) in phi.iter_mut().zip(&self.key_sum) {
            for i in 0..LANES {
                row[i] /= sum[i];
                denominator[i] = mul_add::<I>(row[i], key, denominator[i]);
            }
        }
        let bias = self.bias.chunks(ROWS);
        for ((out, projected), bias) in out.iter_mut().zip(self.projected.chunks_exact(d)).zip(bias) {
            let mut tile = [[0.0; LANES]; ROWS];
            multiply::<I>(projected, &phi, &mut tile);
            for ((out, row), &bias) in out.iter_mut().zip(&tile).zip(bias) {
                for i in 0..LANES {
                    out[i] += row[i] / denominator[i] + bias;
                }
            }
        }
    }
}

fn add(to: &mut [Lanes], from: &[Lanes]) {
    for (to, from) in to.as_flattened_mut().iter_mut().zip(from.as_flattened()) {
        *to += from;
    }
}

impl Sums {
    fn zero(d: usize) -> Self {
        let groups = d.div_ceil(LANES);
        Sums {
            products: vec![[[0.0; LANES]; ROWS]; groups * d.div_ceil(ROWS)],
            features: vec![[0.0; LANES]; groups],
        }
    }
}

/// Sums over one segment of keys.
struct Segment<'a> {
    keys: Rows<'a>,
    values: Rows<'a>,
    rows: std::ops::Range<usize>,
    sums: &'a mut Sums,
}

impl Work for Segment<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let d = self.keys.d;
        let (features, channels) = (d.div_ceil(LANES), d.div_ceil(ROWS));
        let mut phi = vec![[0.0; LANES]; features * CHUNK];
        let mut values = vec![[0.0; ROWS]; channels * CHUNK];
        let mut row = vec![0.0; features * LANES];
        for first in self.rows.clone().step_by(CHUNK) {
            let count = CHUNK.min(self.rows.end - first);
            for i in 0..count {
                softmax::<I>(self.keys.row(first + i), &mut row);
                let sums = self.sums.features.iter_mut();
                for (group, (chunk, sum)) in row.as_chunks::<LANES>().0.iter().zip(sums).enumerate() {
                    phi[group * CHUNK + i] = *chunk;
                    sum.iter_mut().zip(chunk).for_each(|(s, v)| *s += v);
                }
                for (group, chunk) in self.values.row(first + i).chunks(ROWS).enumerate() {
                    values[group * CHUNK + i][..chunk.len()].copy_from_slice(chunk);
                }
            }
            for (phi, products) in phi.chunks_exact(CHUNK).zip(self.sums.products.chunks_exact_mut(channels))
            {
                for (values, products) in values.chunks_exact(CHUNK).zip(products) {
                    multiply::<I>(&values[..count], &phi[..count], products);
                }
            }
        }
    }
}

/// Softmax of a row; what is past its end stays zero.
#[inline(always)]
fn softmax<I: Isa>(x: &[f32], out: &mut [f32]) {
    let mut top = [f32::MIN; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (top, &v) in top.iter_mut().zip(chunk) {
            *top = if v > *top { v } else { *top };
        }
    }
    let max = top.iter().chain(rest).fold(f32::MIN, |a, &v| if v > a { v } else { a });
    for (o, &v) in out.iter_mut().zip(x) {
        *o = exp::<I>(v - max);
    }
    let mut lanes = [0.0; LANES];
    for chunk in out.as_chunks::<LANES>().0 {
        lanes.iter_mut().zip(chunk).for_each(|(s, v)| *s += v);
    }
    let rest = 1.0 / lanes.iter().sum::<f32>();
    out.iter_mut().for_each(|v| *v *= rest);
}

/// The projection is linear, so it goes into the `d x d` sums instead of every query.
struct Project<'a> {
    sums: &'a Sums,
    weight: &'a [f32],
    d: usize,
    projected: &'a mut [[f32; ROWS]],
}

impl Work for Project<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let d = self.d;
        let channels = d.div_ceil(ROWS);
        let mut weight = vec![[0.0; ROWS]; d];
        for (rows, projected) in self.weight.chunks(ROWS * d).zip(self.projected.chunks_exact_mut(d)) {
            for (r, row) in rows.chunks_exact(d).enumerate() {
                weight.iter_mut().zip(row).for_each(|(step, &w)| step[r] = w);
            }
            let groups = self.sums.products.chunks_exact(channels);
            for (products, projected) in groups.zip(projected.chunks_mut(LANES)) {
                let mut tile = [[0.0; LANES]; ROWS];
                multiply::<I>(&weight, &products.as_flattened()[..d], &mut tile);
                for (lane, projected) in projected.iter_mut().enumerate() {
                    projected.iter_mut().zip(&tile).for_each(|(p, row)| *p = row[lane]);
                }
            }
        }
    }
}
