//! Matrix product of 8-bit values with f32 block scales.
//!
//! `acc = fma(dot of 128 columns, x_scale * w_scale, acc)` over the blocks of K in ascending order. INT8 sums within a
//! block are exact, so the result depends neither on the number of threads nor on the instruction set, as long as that
//! has a fused multiply-add. So it is with E4M3: products of two values are exact in f32 and added in ascending order.
//!
//! The loops are those of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008): weights
//! are laid out once for all rows, a task lays 128 rows of activations out for all its outputs, and a register tile
//! is six rows by one vector of outputs, or eight by two.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::quant::{BLOCK, Format};
use super::simd::{Isa, LANES, Lanes, Work, dispatch, gelu_tanh};
use crate::{Attrs, TensorRef};
use product::{E4m3, Int8, Product};

mod product;

/// Outputs of a task.
pub const STRIP: usize = 8 * BLOCK;
/// Strips whose weights are laid out at a time: for each of the `k` inputs they take at most 4 KiB in INT8, 8 KiB in E4M3.
const STRIPS: usize = 2;
/// Vectors of outputs in a block.
const VECTORS: usize = BLOCK / LANES;

/// Quantised operands of `y = x @ w^T`.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// What the values are.
    pub format: Format,
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
    /// Rows.
    pub m: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Whether the tanh GELU follows the bias.
    pub gelu: bool,
}

/// What happens to a block of outputs.
pub trait Epilogue: Sync {
    /// What one task writes: up to 128 rows and up to [`STRIP`] columns.
    type Out<'o>: Send;

    /// Takes a block of outputs, bias and activation included.
    fn finish<I: Isa>(&self, out: &mut Self::Out<'_>, block: &Block<'_>);
}

/// A block of outputs.
pub struct Block<'a> {
    /// First row in the whole.
    pub row: usize,
    /// First column in the whole.
    pub column: usize,
    /// Columns.
    pub width: usize,
    /// The rows, 128 columns each, of which only the first [`Block::width`] mean something.
    pub rows: &'a [[f32; BLOCK]],
}

impl<'a> Block<'a> {
    /// First column within the task.
    pub fn offset(&self) -> usize {
        self.column % STRIP
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &'a [f32]> + Clone {
        let width = self.width;
        self.rows.iter().map(move |row| &row[..width])
    }
}

/// Splits `[m, n]` into what each task writes, `rows` by `columns`, by columns first.
pub fn split<T>(y: &mut [T], n: usize, rows: usize, columns: usize) -> Vec<Vec<&mut [T]>> {
    let down = (y.len() / n.max(1)).div_ceil(rows);
    let mut parts: Vec<Vec<&mut [T]>> = (0..down * n.div_ceil(columns)).map(|_| Vec::new()).collect();
    for (i, row) in y.chunks_mut(n.max(1)).enumerate() {
        for (j, part) in row.chunks_mut(columns).enumerate() {
            parts[j * down + i / rows].push(part);
        }
    }
    parts
}

/// Weights of some outputs: for each block of outputs and of inputs, groups of [`Isa::PANELS`] vectors of outputs;
/// for each group what their sums start from, then the words of every step.
struct Weights<P: Product>(Vec<[P::Word; LANES]>);

impl<P: Product> Weights<P> {
    fn new(x: &Operands<'_>, columns: std::ops::Range<usize>) -> Self {
        let size = size_of_block::<P>();
        let tiles = x.k.div_ceil(BLOCK);
        let mut words = vec![[P::Word::default(); LANES]; columns.len().div_ceil(BLOCK) * tiles * size];
        let blocks = columns.into_par_iter().step_by(BLOCK);
        words
            .par_chunks_mut(tiles * size)
            .zip(blocks)
            .for_each(|(words, column)| dispatch(PackWeights::<P> { x, column, words }));
        Weights(words)
    }
}

/// Vectors that a block of weights takes.
#[inline(always)]
fn block_size<I: Isa, P: Product>() -> usize {
    VECTORS * (1 + BLOCK / P::depth::<I>())
}

/// As [`block_size`] of the set that [`dispatch`] picks.
fn size_of_block<P: Product>() -> usize {
    let mut size = 0;
    dispatch(SizeOf(&mut size, PhantomData::<P>));
    size
}

struct SizeOf<'a, P>(&'a mut usize, PhantomData<P>);

impl<P: Product> Work for SizeOf<'_, P> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        *self.0 = block_size::<I, P>();
    }
}

/// Lays the weights of one block of outputs out.
struct PackWeights<'a, P: Product> {
    x: &'a Operands<'a>,
    column: usize,
    words: &'a mut [[P::Word; LANES]],
}

impl<P: Product> Work for PackWeights<'_, P> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let PackWeights { x, column, words } = self;
        let (depth, steps) = (P::depth::<I>(), BLOCK / P::depth::<I>());
        // Sixteen rows side by side: each is read from its start to its end.
        for (c, first) in (column..x.n.min(column + BLOCK)).step_by(LANES).enumerate() {
            let (group, panel) = (c / I::PANELS, c % I::PANELS);
            for (tile, words) in words.chunks_exact_mut(block_size::<I, P>()).enumerate() {
                let words = &mut words[group * I::PANELS * (1 + steps)..][..I::PANELS * (1 + steps)];
                let mut values = [[0; BLOCK]; LANES];
                for (row, values) in (first..x.n.min(first + LANES)).zip(&mut values) {
                    let row = &x.w[row * x.k..][tile * BLOCK..x.k.min((tile + 1) * BLOCK)];
                    *values = padded(row);
                }
                for (start, values) in words[panel].iter_mut().zip(&values) {
                    *start = P::start::<I>(values);
                }
                for step in 0..steps {
                    let word = &mut words[(1 + step) * I::PANELS + panel];
                    for (word, values) in word.iter_mut().zip(&values) {
                        *word = P::right::<I>(&values[step * depth..][..depth]);
                    }
                }
            }
        }
    }
}

/// 128 rows by the outputs of a strip.
struct Task<'a, 'o, E: Epilogue, P: Product> {
    x: &'a Operands<'a>,
    weights: &'a [[P::Word; LANES]],
    /// First row and column.
    at: [usize; 2],
    epilogue: &'a E,
    out: &'a mut E::Out<'o>,
}

impl<E: Epilogue, P: Product> Work for Task<'_, '_, E, P> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Task { x, weights, at: [row, column], epilogue, out } = self;
        let (tiles, steps) = (x.k.div_ceil(BLOCK), BLOCK / P::depth::<I>());
        let count = BLOCK.min(x.m - row);
        let height = count.next_multiple_of(I::HEIGHT);
        let left = left_words::<I, P>(x, row, count);
        let scales = &x.s[row / BLOCK * tiles..][..tiles];
        let mut sums = vec![[0.0; LANES]; height * VECTORS];
        let mut rows = vec![[0.0; BLOCK]; count];
        let columns = (column..x.n.min(column + STRIP)).step_by(BLOCK);
        for (column, weights) in columns.zip(weights.chunks_exact(tiles * block_size::<I, P>())) {
            sums.fill([0.0; LANES]);
            let ws = &x.ws[column / BLOCK * tiles..][..tiles];
            for (tile, weights) in weights.chunks_exact(block_size::<I, P>()).enumerate() {
                let scale = scales[tile] * ws[tile];
                let left = &left[tile * height * steps..][..height * steps];
                let panels = weights.chunks_exact(I::PANELS * (1 + steps));
                for (weights, sums) in panels.zip(sums.chunks_exact_mut(I::PANELS * height)) {
                    for (left, sums) in
                        left.chunks_exact(I::HEIGHT * steps).zip(sums.chunks_exact_mut(I::PANELS * I::HEIGHT))
                    {
                        match I::PANELS {
                            2 => multiply::<I, P, 8, 2>(left, weights, scale, sums),
                            _ => multiply::<I, P, 6, 1>(left, weights, scale, sums),
                        }
                    }
                }
            }
            let width = BLOCK.min(x.n - column);
            let mut bias = [[0.0; LANES]; VECTORS];
            bias.as_flattened_mut()[..width].copy_from_slice(&x.bias[column..column + width]);
            for (r, row) in rows.iter_mut().enumerate() {
                for (v, (y, b)) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(&bias).enumerate() {
                    let (group, panel) = (v / I::PANELS, v % I::PANELS);
                    let sum = &sums[(group * height + r) * I::PANELS + panel];
                    for i in 0..LANES {
                        y[i] = sum[i] + b[i];
                    }
                }
                if x.gelu {
                    row.iter_mut().for_each(|y| *y = gelu_tanh::<I>(*y));
                }
            }
            epilogue.finish::<I>(out, &Block { row, column, width, rows: &rows });
        }
    }
}

/// A row of a block; most are whole, and copied without a call.
#[inline(always)]
fn padded(row: &[i8]) -> [i8; BLOCK] {
    if let Ok(whole) = row.try_into() {
        return whole;
    }
    let mut values = [0; BLOCK];
    values[..row.len()].copy_from_slice(row);
    values
}

/// Words of activations: for each block of inputs and each row, filled up to whole register tiles, every step.
#[inline(always)]
fn left_words<I: Isa, P: Product>(x: &Operands<'_>, first: usize, count: usize) -> Vec<P::Word> {
    let (depth, steps) = (P::depth::<I>(), BLOCK / P::depth::<I>());
    let (tiles, rows) = (x.k.div_ceil(BLOCK), count.next_multiple_of(I::HEIGHT));
    let mut words = vec![P::Word::default(); tiles * rows * steps];
    for (r, row) in x.q[first * x.k..][..count * x.k].chunks_exact(x.k).enumerate() {
        for (tile, part) in row.chunks(BLOCK).enumerate() {
            let values = padded(part);
            let words = &mut words[(tile * rows + r) * steps..][..steps];
            for (word, values) in words.iter_mut().zip(values.chunks_exact(depth)) {
                *word = P::left::<I>(values);
            }
        }
    }
    words
}

/// Adds a block of inputs to the sums of `R` rows and `N` vectors of outputs.
#[inline(always)]
fn multiply<I: Isa, P: Product, const R: usize, const N: usize>(
    left: &[P::Word],
    right: &[[P::Word; LANES]],
    scale: f32,
    sums: &mut [Lanes],
) {
    let steps = BLOCK / P::depth::<I>();
    let left = &left[..R * steps];
    let (starts, right) = right.split_at(N);
    let right = &right.as_chunks::<N>().0[..steps];
    let mut dots = [[P::load::<I>(&starts[0]); N]; R];
    for row in &mut dots {
        for (dot, start) in row.iter_mut().zip(starts) {
            *dot = P::load::<I>(start);
        }
    }
    for step in 0..steps {
        for (r, dots) in dots.iter_mut().enumerate() {
            for (dot, right) in dots.iter_mut().zip(&right[step]) {
                *dot = P::add::<I>(*dot, left[r * steps + step], right);
            }
        }
    }
    for (sum, &dot) in sums.iter_mut().zip(dots.as_flattened()) {
        *sum = I::store(P::add_to::<I>(I::load(sum), scale, dot));
    }
}

impl<'a> Operands<'a> {
    /// The first five inputs of every W8A8 op.
    pub fn of(attrs: &Attrs, inputs: &[TensorRef<'a>], gelu: bool) -> Self {
        let [q, s, w, ws, bias] = [0, 1, 2, 3, 4].map(|i| inputs[i]);
        let (m, n, k) = (q.shape[0], w.shape[0], w.shape[1]);
        let format = Format::of(attrs);
        Operands { format, q: q.i8(), s: s.f32(), w: w.i8(), ws: ws.f32(), bias: bias.f32(), m, n, k, gelu }
    }

    /// Computes all blocks of `y [m, n]`; `outs` are the parts of the output as [`split`] orders them.
    pub fn compute<E: Epilogue>(&self, outs: Vec<E::Out<'_>>, epilogue: &E) {
        match self.format {
            Format::Int8 => self.compute_as::<E, Int8>(outs, epilogue),
            Format::E4m3 => self.compute_as::<E, E4m3>(outs, epilogue),
        }
    }

    fn compute_as<E: Epilogue, P: Product>(&self, mut outs: Vec<E::Out<'_>>, epilogue: &E) {
        let down = self.m.div_ceil(BLOCK);
        let strip = STRIP / BLOCK * self.k.div_ceil(BLOCK) * size_of_block::<P>();
        for (i, outs) in outs.chunks_mut((STRIPS * down).max(1)).enumerate() {
            let first = i * STRIPS * STRIP;
            let weights = Weights::<P>::new(self, first..self.n.min(first + STRIPS * STRIP)).0;
            outs.par_iter_mut().enumerate().for_each(|(i, out)| {
                let weights = &weights[i / down * strip..];
                let at = [i % down * BLOCK, first + i / down * STRIP];
                dispatch(Task::<E, P> { x: self, weights, at, epilogue, out });
            });
        }
    }
}
