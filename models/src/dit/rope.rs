//! Rotary position table over time, height and width.

use turbo_graph::{Graph, Value};

/// Base of the rotation frequencies.
const THETA: f32 = 10000.0;

/// Cosines and sines, each f32 `[l, head_dim / 2]`: pairs 22 t, 21 h, 21 w at head size 128.
///
/// Angles are f32 products as upstream (`VideoRopePosition3DEmb`; official Wan uses f64).
///
/// `zero [1, 1]` is added, which depends on an input, so that they are no constants. Of a constant TensorRT keeps a copy
/// for each layer that takes it, as it seems: a GiB is missing from the GPU's memory with 60 layers of 32760 tokens
/// (10.6.0).
pub(super) fn table(g: &mut Graph, head_dim: usize, grid: [usize; 3], zero: Value) -> (Value, Value) {
    let angles = angles(head_dim, grid);
    let shape = [grid.iter().product(), head_dim / 2];
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    [cos, sin]
        .map(|table| {
            let table = g.constant_f32(&shape, &table);
            g.add(table, zero)
        })
        .into()
}

fn angles(head_dim: usize, [t, h, w]: [usize; 3]) -> Vec<f32> {
    let dim_h = head_dim / 6 * 2;
    let dim_t = head_dim - 2 * dim_h;
    let frequencies = |dim: usize| -> Vec<f32> {
        (0..dim / 2).map(|i| 1.0 / THETA.powf((2 * i) as f32 / dim as f32)).collect()
    };
    let (along_t, along_hw) = (frequencies(dim_t), frequencies(dim_h));
    let mut angles = Vec::with_capacity(t * h * w * head_dim / 2);
    for (ti, hi, wi) in (0..t).flat_map(|a| (0..h).flat_map(move |b| (0..w).map(move |c| (a, b, c)))) {
        angles.extend(along_t.iter().map(|f| ti as f32 * f));
        angles.extend(along_hw.iter().map(|f| hi as f32 * f));
        angles.extend(along_hw.iter().map(|f| wi as f32 * f));
    }
    angles
}

#[cfg(test)]
mod tests {
    #[test]
    fn pairs_are_time_then_height_then_width() {
        let angles = super::angles(128, [2, 3, 4]);
        assert_eq!(angles.len(), 24 * 64);
        let last = &angles[23 * 64..];
        // The first pair of each part turns by one radian per step.
        assert_eq!((last[0], last[22], last[43]), (1.0, 2.0, 3.0));
    }
}
