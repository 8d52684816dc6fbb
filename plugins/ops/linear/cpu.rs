//! The CPU kernel: a task takes some rows and outputs, and lays both operands out for register tiles of six rows by
//! sixteen outputs, a part of the inputs at a time.

use rayon::prelude::*;

use crate::common::simd::{Isa, LANES, Lanes, ROWS, Work, dispatch, gelu_tanh, multiply};
use crate::common::w8a8::split;
use crate::w8a8_linear::gelu;
use crate::{Attrs, TensorMut, TensorRef};

/// Rows, outputs and inputs of which operands and sums fit into an L2 cache.
const HEIGHT: usize = 32 * ROWS;
const WIDTH: usize = 8 * LANES;
const DEPTH: usize = 256;

/// The operands.
#[derive(Clone, Copy)]
struct Operands<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: &'a [f32],
    k: usize,
    gelu: bool,
}

/// Runs the op.
pub(super) fn run(attrs: &Attrs, inputs: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let (m, n, k) = (inputs[0].shape[0], inputs[1].shape[0], inputs[1].shape[1]);
    let [x, w, bias] = [0, 1, 2].map(|i| inputs[i].f32());
    let operands = Operands { x, w, bias, k, gelu: gelu(attrs) };
    let down = m.div_ceil(HEIGHT);
    split(outputs[0].f32(), n, HEIGHT, WIDTH).par_iter_mut().enumerate().for_each(|(i, y)| {
        dispatch(Task { operands, at: [i % down * HEIGHT, i / down * WIDTH], y });
    });
}

/// The outputs `y`, whose first row and column are `at`.
struct Task<'a, 'y> {
    operands: Operands<'a>,
    at: [usize; 2],
    y: &'a mut [&'y mut [f32]],
}

impl Work for Task<'_, '_> {
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Task { operands: Operands { x, w, bias, k, gelu }, at: [row, column], y } = self;
        let (rows, columns) = (y.len(), y.first().map_or(0, |row| row.len()));
        let (tiles, panels) = (rows.div_ceil(ROWS), columns.div_ceil(LANES));
        let mut left = vec![[0.0; ROWS]; tiles * DEPTH];
        let mut right = vec![[0.0; LANES]; panels * DEPTH];
        let mut sums = vec![[[0.0; LANES]; ROWS]; tiles * panels];
        for first in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            pack(&mut left, &x[row * k..][..rows * k], k, first);
            pack(&mut right, &w[column * k..][..columns * k], k, first);
            for (right, sums) in right.chunks_exact(DEPTH).zip(sums.chunks_exact_mut(tiles)) {
                for (left, sums) in left.chunks_exact(DEPTH).zip(sums) {
                    multiply::<I>(&left[..depth], &right[..depth], sums);
                }
            }
        }
        for (r, y) in y.iter_mut().enumerate() {
            for (c, y) in y.chunks_mut(LANES).enumerate() {
                let sums: &Lanes = &sums[c * tiles + r / ROWS][r % ROWS];
                for ((y, sum), bias) in y.iter_mut().zip(sums).zip(&bias[column + c * LANES..]) {
                    let value = sum + bias;
                    *y = if gelu { gelu_tanh::<I>(value) } else { value };
                }
            }
        }
    }
}

/// Lays columns from `first` on of rows of `k` out: for each `N` rows, [`DEPTH`] columns of them. What there is no row
/// for stays.
#[inline(always)]
fn pack<const N: usize>(to: &mut [[f32; N]], from: &[f32], k: usize, first: usize) {
    for (i, row) in from.chunks_exact(k).enumerate() {
        let to = &mut to[i / N * DEPTH..][..DEPTH];
        for (to, &value) in to.iter_mut().zip(&row[first..]) {
            to[i % N] = value;
        }
    }
}
