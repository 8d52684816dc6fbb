//! Sums of 32 rows, as `TurboNormRope` gives them of queries and keys: block maps and the smoothing of keys are made of
//! them.

use crate::Tensor;

/// Rows of a sum. Blocks of queries and keys are multiples of it.
pub const SUM_ROWS: usize = 32;

/// The op's `sums` of rows `[sequences * l, c]`.
pub fn sum_rows<T: Copy + Into<f64>>(x: &[T], [l, c]: [usize; 2]) -> impl Iterator<Item = f32> {
    let parts = x.chunks((l * c).max(1)).flat_map(move |sequence| sequence.chunks((SUM_ROWS * c).max(1)));
    let sum = move |rows: &[T], column: usize| {
        rows.iter().skip(column).step_by(c).map(|&x| x.into()).sum::<f64>() as f32
    };
    parts.flat_map(move |rows| (0..c).map(move |column| sum(rows, column)))
}

/// The same as a tensor in f64, `[sequences, ceil(l / 32), c]`.
pub fn sums_of(x: &Tensor, l: usize) -> Tensor {
    let (m, c) = (x.shape[0], x.shape[1]);
    let sums = sum_rows(x.as_f64(), [l, c]).map(f64::from);
    Tensor::f64(&[m / l, l.div_ceil(SUM_ROWS), c], sums.collect())
}

/// Means of blocks of rows, of `d` channels from `channel` on, from their sums `[b, sums, c]`; with `usize::MAX` as `block`
/// one mean, of all rows.
pub fn pooled<T: Copy + Into<f64>>(
    sums: &[T],
    shape: &[usize],
    [batch, channel, d]: [usize; 3],
    tokens: usize,
    block: usize,
) -> Vec<Vec<f64>> {
    let (count, c) = (shape[1], shape[2]);
    let of_batch = &sums[batch * count * c..][..count * c];
    let block = block.min(count * SUM_ROWS);
    let mean = |(i, sums): (usize, &[T])| {
        let rows = block.min(tokens - i * block) as f64;
        let sum = |channel: usize| sums.iter().skip(channel).step_by(c).map(|&x| x.into()).sum::<f64>();
        (channel..channel + d).map(|channel| sum(channel) / rows).collect()
    };
    of_batch.chunks(block / SUM_ROWS * c).enumerate().map(mean).collect()
}
