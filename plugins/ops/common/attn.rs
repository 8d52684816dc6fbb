//! Softmax attention of blocks of queries with lists of key blocks, one pass over the keys with a running maximum
//! (FlashAttention, arXiv:2205.14135). Memory is linear in the number of tokens.
//!
//! The contract of the SageAttention form (SageAttention2, arXiv:2411.10958, as TurboDiffusion runs it through
//! SpargeAttn's `csrc/qattn`): keys have their mean over all tokens subtracted; queries and keys become INT8 per
//! block with `scale = max|x| / 127 + 1e-7` and rounding half away from zero; the sums are exact. A key block's
//! probabilities are `2^(s - max + 8.807)` in E4M3, with values in E4M3 per channel at `scale = max|v| / 2.25`, or
//! `2^(s - max)` and the values both in f16. `max` is the row's maximum over this and all earlier kept blocks;
//! what was summed before is rescaled when it grows, in f32. The denominator sums the E4M3 form's probabilities
//! before they are rounded and the f16 form's afterwards. Not part of the contract: the order of sums, the width of
//! accumulators (upstream's f16 form sums in f16), and the rounding of means and smoothed keys to the activation type.

use rayon::prelude::*;

use super::attn_linear::Linear;
use super::attn_pack::{Keys, Rows, Values, quantize_queries};
use super::f8::round_positive;
use super::simd::{Isa, LANES, Lanes, ROWS, Work, dispatch, exp2, mul_add, multiply, multiply_pairs};
use super::sums::pooled;
use crate::{Attrs, TensorRef};

/// Lifts probabilities to the top of the E4M3 range: `2^8.807` is about 448.
const FP8_OFFSET: f32 = 8.807;
/// Query blocks that are enough to keep every processor busy: heads are taken together up to it, and no further,
/// because each holds a copy of its keys and values.
const TASKS: usize = 128;

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

/// One attention op over all batches and heads.
pub struct Attention<'a> {
    /// Arithmetic of the softmax branch.
    pub form: Form,
    /// Queries `[batch * l, heads * d]`, keys and values `[batch * s, heads * d]`.
    pub qkv: [TensorRef<'a>; 3],
    /// Sums of rows of keys `[batch, sums, heads * d]`, where the form smooths keys.
    pub key_sums: Option<TensorRef<'a>>,
    /// Batch entries.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries and keys of a block.
    pub blocks: [usize; 2],
    /// Weight and bias of `proj_l`, where there is a linear branch.
    pub proj: Option<[&'a [f32]; 2]>,
}

/// What the query blocks of one head share.
struct Head {
    keys: Keys,
    values: Values,
    linear: Option<Linear>,
}

impl Attention<'_> {
    /// Computes the output; `kept(batch * heads + head, query block)` gives the key blocks.
    pub fn run(&self, out: &mut [f32], kept: impl Fn(usize, usize) -> Vec<usize> + Sync) {
        let c = self.qkv[0].shape[1];
        let [l, s] = [0, 1].map(|i| self.qkv[i].shape[0] / self.batch);
        let d = c / self.heads;
        // A block that is larger than everything would only waste memory.
        let [block_q, block_k] = [self.blocks[0].min(l.max(1)), self.blocks[1].min(s.max(1))];
        let blocks = l.div_ceil(block_q);
        let rows = |tensor: usize, head: usize| Rows::new(&self.qkv[tensor], [self.batch, self.heads], head);
        let all: Vec<usize> = (0..self.batch * self.heads).collect();
        for group in all.chunks(TASKS.div_ceil(blocks.max(1))) {
            let prepare = |&head: &usize| Head {
                keys: Keys::new(self.form, rows(1, head), &self.key_mean(head), block_k),
                values: Values::new(self.form, rows(2, head), block_k),
                linear: self
                    .proj
                    .map(|[weight, bias]| Linear::new(rows(1, head), rows(2, head), weight, bias)),
            };
            let prepared: Vec<Head> = group.par_iter().map(prepare).collect();
            let attend = |task: usize| {
                let (head, block) = (group[task / blocks], task % blocks);
                let first = block * block_q;
                let mut part = vec![0.0; block_q.min(l - first) * d];
                dispatch(Block {
                    form: self.form,
                    head: &prepared[task / blocks],
                    queries: rows(0, head),
                    first,
                    kept: &kept(head, block),
                    out: &mut part,
                });
                part
            };
            let parts: Vec<Vec<f32>> = (0..group.len() * blocks).into_par_iter().map(attend).collect();
            out.par_chunks_mut(c).enumerate().for_each(|(row, out)| {
                let (batch, row) = (row / l, row % l);
                for (i, head) in group.iter().enumerate().filter(|(_, head)| **head / self.heads == batch) {
                    let part = &parts[i * blocks + row / block_q];
                    out[head % self.heads * d..][..d].copy_from_slice(&part[row % block_q * d..][..d]);
                }
            });
        }
    }

    /// Mean of a head's keys, for the forms that smooth them.
    fn key_mean(&self, head: usize) -> Vec<f32> {
        let (s, d) = (self.qkv[1].shape[0] / self.batch, self.qkv[1].shape[1] / self.heads);
        let place = [head / self.heads, head % self.heads * d, d];
        let mean = |sums: TensorRef<'_>| pooled(sums.f32(), sums.shape, place, s, usize::MAX).swap_remove(0);
        self.key_sums.map(mean).unwrap_or_default().into_iter().map(|x| x as f32).collect()
    }
}

/// Attention of one block of queries, sixteen queries side by side.
struct Block<'a> {
    form: Form,
    head: &'a Head,
    queries: Rows<'a>,
    first: usize,
    kept: &'a [usize],
    out: &'a mut [f32],
}

/// Running state of sixteen queries.
#[derive(Clone)]
struct State {
    max: Lanes,
    sum: Lanes,
    /// Sums of values, six channels at a time.
    out: Vec<[Lanes; ROWS]>,
}

impl Work for Block<'_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let d = self.queries.d;
        let count = self.out.len() / d;
        let groups = count.div_ceil(LANES);
        let panels = self.queries.panels(self.first, count);
        // Scores in base 2, as upstream's kernels compute them.
        let unit = std::f32::consts::LOG2_E / (d as f32).sqrt();
        let (pairs, scale) = match self.form {
            Form::Exact => (Vec::new(), 1.0),
            _ => quantize_queries(&panels, d),
        };
        // The least finite number, not infinity: the difference of two of them is no NaN.
        let start = State {
            max: [f32::MIN; LANES],
            sum: [0.0; LANES],
            out: vec![[[0.0; LANES]; ROWS]; d.div_ceil(ROWS)],
        };
        let mut states = vec![start; groups];
        let mut scores = vec![[[0.0; LANES]; ROWS]; self.head.values.block.div_ceil(ROWS)];
        for &key in self.kept {
            let size = self.head.values.size(key);
            for (group, state) in states.iter_mut().enumerate() {
                let tiles = &mut scores[..size.div_ceil(ROWS)];
                let factor = match &self.head.keys {
                    Keys::Exact(keys) => {
                        let panel = &panels[group * d..][..d];
                        for (tile, keys) in tiles.iter_mut().zip(keys.tiles(key)) {
                            *tile = [[0.0; LANES]; ROWS];
                            multiply::<I>(keys, panel, tile);
                        }
                        unit
                    }
                    Keys::Int8(keys, scales) => {
                        let depth = d.div_ceil(2);
                        let panel = &pairs[group * depth..][..depth];
                        for (tile, keys) in tiles.iter_mut().zip(keys.tiles(key)) {
                            multiply_pairs::<I>(keys, panel, tile);
                        }
                        unit * (scale * scales[key])
                    }
                };
                let scores = &mut tiles.as_flattened_mut()[..size];
                match self.form {
                    Form::Exact => state.softmax::<I>(scores, factor, 0.0, |p| (p, p)),
                    Form::SageFp8 => {
                        state.softmax::<I>(scores, factor, FP8_OFFSET, |p| (p, round_positive::<3, -6>(p)))
                    }
                    Form::SageF16 => state.softmax::<I>(scores, factor, 0.0, |p| {
                        let p = round_positive::<10, -14>(p);
                        (p, p)
                    }),
                }
                for (out, values) in state.out.iter_mut().zip(self.head.values.tiles.tiles(key)) {
                    multiply::<I>(&values[..size], scores, out);
                }
            }
        }
        for (group, (state, out)) in states.iter_mut().zip(self.out.chunks_mut(LANES * d)).enumerate() {
            // No key block was kept: nothing is attended to.
            let rest = state.sum.map(|sum| if sum == 0.0 { 0.0 } else { 1.0 / sum });
            let rows = state.out.as_flattened_mut();
            for (row, &scale) in rows.iter_mut().zip(&self.head.values.scales) {
                row.iter_mut().zip(&rest).for_each(|(o, r)| *o *= scale * r);
            }
            if let Some(linear) = &self.head.linear {
                linear.add::<I>(&panels[group * d..][..d], &mut state.out);
            }
            for (lane, out) in out.chunks_exact_mut(d).enumerate() {
                out.iter_mut().zip(state.out.as_flattened()).for_each(|(o, row)| *o = row[lane]);
            }
        }
    }
}

impl State {
    /// Turns scores into probabilities relative to the running maximum and rescales what was summed before;
    /// `round` gives a probability as the denominator and as the values see it.
    #[inline(always)]
    fn softmax<I: Isa>(
        &mut self,
        scores: &mut [Lanes],
        factor: f32,
        offset: f32,
        round: impl Fn(f32) -> (f32, f32),
    ) {
        let mut top = [f32::MIN; LANES];
        for row in scores.iter() {
            for (top, &s) in top.iter_mut().zip(row) {
                *top = if s > *top { s } else { *top };
            }
        }
        let mut shrink = [1.0; LANES];
        let mut shift = [0.0; LANES];
        for i in 0..LANES {
            let top = top[i] * factor;
            let max = if top > self.max[i] { top } else { self.max[i] };
            shrink[i] = exp2::<I>(self.max[i] - max);
            shift[i] = offset - max;
            self.max[i] = max;
        }
        if shrink != [1.0; LANES] {
            for row in self.out.as_flattened_mut() {
                row.iter_mut().zip(&shrink).for_each(|(o, s)| *o *= s);
            }
        }
        let mut sum = [0.0; LANES];
        for row in scores {
            for i in 0..LANES {
                let (weight, p) = round(exp2::<I>(mul_add::<I>(row[i], factor, shift[i])));
                sum[i] += weight;
                row[i] = p;
            }
        }
        for i in 0..LANES {
            self.sum[i] = mul_add::<I>(self.sum[i], shrink[i], sum[i]);
        }
    }
}

#[cfg(test)]
mod tests;
