//! Scaling a picture, and the size to scale it to.

use crate::{Error, Frame};

/// Scales a picture to `width` x `height`, whatever its own shape.
///
/// Bit for bit torchvision's v2 `Resize(antialias=True)` on uint8 (ATen's `upsample_bilinear2d_aa`, which
/// follows Pillow): a triangle filter as wide as the reduction, weights in 16-bit fixed point, rows first,
/// then columns, with bytes in between.
///
/// # Errors
/// [`Error::Shape`] for a side of 0 or more than 2^28 pixels; [`Error::FrameBytes`].
pub fn resize(frame: &Frame, width: usize, height: usize) -> Result<Frame, Error> {
    frame.check()?;
    if [frame.width, frame.height, width, height].contains(&0) {
        return Err(Error::Shape {
            what: "size of a picture to scale",
            expected: "no side of 0".into(),
            found: format!("{} x {} to {width} x {height}", frame.width, frame.height),
        });
    }
    let mut out = frame.clone();
    if out.width != width {
        let mut wide = Frame::filled(width, out.height, [0; 3])?;
        let filter = Filter::new(out.width, width);
        let lines = wide.rgb.chunks_exact_mut(width * 3).zip(out.rgb.chunks_exact(out.width * 3));
        for (to, from) in lines {
            for (px, window) in to.chunks_exact_mut(3).zip(&filter.windows) {
                for (c, value) in px.iter_mut().enumerate() {
                    let samples = from[window.start * 3..].iter().skip(c).step_by(3);
                    *value = filter.apply(window, samples);
                }
            }
        }
        out = wide;
    }
    if out.height != height {
        let mut tall = Frame::filled(width, height, [0; 3])?;
        let filter = Filter::new(out.height, height);
        let stride = width * 3;
        for (to, window) in tall.rgb.chunks_exact_mut(stride).zip(&filter.windows) {
            for (x, value) in to.iter_mut().enumerate() {
                let samples = out.rgb[window.start * stride + x..].iter().step_by(stride);
                *value = filter.apply(window, samples);
            }
        }
        out = tall;
    }
    Ok(out)
}

/// The weights of one axis.
struct Filter {
    /// Fraction bits of the weights: as many as the largest weight leaves in an i16.
    bits: u32,
    windows: Vec<Window>,
}

/// Which samples make up one output sample.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

impl Filter {
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let window = |i: usize| {
            let centre = scale * (i as f64 + 0.5);
            let start = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let reach = |j: usize| (j as f64 - centre + 0.5) / support;
            let weights: Vec<f64> = (start..end).map(|j| (1.0 - reach(j).abs()).max(0.0)).collect();
            let total: f64 = weights.iter().sum();
            (start, weights.into_iter().map(|w| w / total).collect::<Vec<_>>())
        };
        let windows: Vec<_> = (0..to).map(window).collect();
        let largest = windows.iter().flat_map(|(_, w)| w).copied().fold(0.0, f64::max);
        let fits = |bits: &u32| ((0.5 + largest * f64::from(1u32 << (bits + 1))) as i32) < 1 << 15;
        let bits = (0..22).take_while(fits).count() as u32;
        let fixed = |w: f64| (w * f64::from(1u32 << bits) + 0.5) as i32;
        let windows = windows
            .into_iter()
            .map(|(start, w)| Window { start, weights: w.into_iter().map(fixed).collect() })
            .collect();
        Self { bits, windows }
    }

    fn apply<'a>(&self, window: &Window, samples: impl Iterator<Item = &'a u8>) -> u8 {
        let half = (1 << self.bits) >> 1;
        let sum = window.weights.iter().zip(samples).fold(half, |sum, (w, v)| sum + w * i32::from(*v));
        (sum >> self.bits).clamp(0, 255) as u8
    }
}

/// The `(width, height)` for a video that keeps the shape of its first picture: about `area` pixels, each
/// side the nearest multiple of `stride` (ties to the even multiple) and at least one.
///
/// TurboDiffusion's `--adaptive_resolution` (`inference/wan2.2_i2v_infer.py`), where `area` is that of the
/// chosen resolution and `stride` 16: 8 of the VAE times 2 of the patches.
///
/// # Errors
/// [`Error::Shape`] for a side, area or stride of 0.
pub fn adaptive_size(
    width: usize,
    height: usize,
    area: usize,
    stride: usize,
) -> Result<(usize, usize), Error> {
    if [width, height, area, stride].contains(&0) {
        return Err(Error::Shape {
            what: "size of a picture to make a video of",
            expected: "no side, area or stride of 0".into(),
            found: format!("{width} x {height}, area {area}, stride {stride}"),
        });
    }
    let aspect = height as f64 / width as f64;
    let side =
        |ideal: f64| ((ideal / stride as f64).round_ties_even().max(1.0) as usize).saturating_mul(stride);
    Ok((side((area as f64 / aspect).sqrt()), side((area as f64 * aspect).sqrt())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grey(width: usize, height: usize, values: &[u8]) -> Frame {
        Frame { width, height, rgb: values.iter().flat_map(|v| [*v; 3]).collect() }
    }

    #[test]
    fn doubling_and_halving() {
        let line = grey(4, 1, &[0, 100, 200, 40]);
        // Weights 3/4 and 1/4 inside, the edge sample alone at the ends.
        let wide = resize(&line, 8, 1).unwrap();
        assert_eq!(wide, grey(8, 1, &[0, 25, 75, 125, 175, 160, 80, 40]));
        // Reducing by 2 weighs four samples 1 3 3 1, three of them 3 3 1 at the ends.
        let small = resize(&line, 2, 1).unwrap();
        assert_eq!(small, grey(2, 1, &[71, 117]));
    }

    #[test]
    fn no_side_may_be_zero() {
        let frame = grey(2, 2, &[0; 4]);
        for (w, h) in [(0, 1), (1, 0)] {
            assert!(matches!(resize(&frame, w, h), Err(Error::Shape { .. })));
            assert!(matches!(resize(&grey(w, h, &[]), 2, 2), Err(Error::Shape { .. })));
        }
        assert!(resize(&frame, usize::MAX / 2, 4).is_err());
        assert!(adaptive_size(0, 10, 100, 16).is_err());
        assert!(adaptive_size(10, 10, 100, 0).is_err());
    }

    #[test]
    fn extreme_shapes_keep_one_step() {
        assert_eq!(adaptive_size(100_000, 1, 832 * 480, 16).unwrap().1, 16);
        assert_eq!(adaptive_size(1, 100_000, 832 * 480, 16).unwrap().0, 16);
    }

    proptest! {
        #[test]
        fn flat_stays_flat_and_range_is_kept(
            w in 1..40usize, h in 1..40usize, to_w in 1..60usize, to_h in 1..60usize, seed: u64,
        ) {
            let values: Vec<u8> = (0..w * h).map(|i| (seed.wrapping_mul(2 * i as u64 + 1) >> 40) as u8).collect();
            let (least, most) = (values.iter().min().unwrap(), values.iter().max().unwrap());
            let out = resize(&grey(w, h, &values), to_w, to_h).unwrap();
            prop_assert_eq!((out.width, out.height), (to_w, to_h));
            // Rounded weights may add up to a few units of 2^-14 more or less than 1.
            prop_assert!(out.rgb.iter().all(|v| *v >= least.saturating_sub(1) && *v <= most.saturating_add(1)));
            prop_assert_eq!(resize(&grey(w, h, &values), w, h).unwrap(), grey(w, h, &values));
        }
    }
}
