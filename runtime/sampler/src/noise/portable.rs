//! Our own noise: a seed means the same numbers on every machine, thread count and tensor shape.

use rayon::prelude::*;

use super::{NoiseSource, empty, philox::philox4x32_10, philox::words};
use crate::Error;

/// Standard normal noise that depends on seed, draw and position only.
///
/// Element `2b` and `2b + 1` of draw `d` (0 is the initial noise) come from one Philox4x32-10 block:
///
/// ```text
/// w  = philox(counter = [low(b), high(b), d, 0], key = [low(seed), high(seed)])
/// u0 = ((w0 + 2^32 w1 >> 11) + 1) / 2^53        in (0, 1]
/// u1 =  (w2 + 2^32 w3 >> 11)      / 2^53        in [0, 1)
/// r  = sqrt(-2 ln u0);  elements: r cos(2 pi u1), r sin(2 pi u1), rounded to f32
/// ```
///
/// All of it is f64 arithmetic with the logarithm, sine and cosine of the `libm` crate, never the platform's, so
/// that the bits do not depend on operating system, processor or compiler.
#[derive(Debug, Clone)]
pub struct Portable {
    seed: u64,
    draw: u32,
}

impl Portable {
    /// The generator of `seed`, before its first draw.
    pub fn new(seed: u64) -> Self {
        Self { seed, draw: 0 }
    }
}

impl NoiseSource for Portable {
    fn draw(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        const CHUNK: usize = 1 << 14;
        let mut out = empty(n)?;
        out.resize(n, 0.0);
        let (seed, draw) = (self.seed, self.draw);
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            let first = (chunk * (CHUNK / 2)) as u64;
            for (block, pair) in (first..).zip(out.chunks_mut(2)) {
                let normal = normal_pair(seed, draw, block);
                pair.copy_from_slice(&normal[..pair.len()]);
            }
        });
        self.draw = self.draw.wrapping_add(1);
        Ok(out)
    }
}

fn normal_pair(seed: u64, draw: u32, block: u64) -> [f32; 2] {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let [low, high] = words(block);
    let w = philox4x32_10([low, high, draw, 0], words(seed));
    let bits53 = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32) >> 11;
    let radius = libm::sqrt(-2.0 * libm::log((bits53(w[0], w[1]) + 1) as f64 * UNIT));
    let angle = std::f64::consts::TAU * (bits53(w[2], w[3]) as f64 * UNIT);
    [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn distribution_is_standard_normal() {
        let n = 400_000;
        let mut values = Portable::new(1).draw(n).unwrap();
        let moment = |k: i32| values.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / n as f64;
        for (k, expected, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.01), (3, 0.0, 0.03), (4, 3.0, 0.08)] {
            assert!((moment(k) - expected).abs() < tolerance, "moment {k}: {}", moment(k));
        }
        // Kolmogorov-Smirnov at the 0.1 % level.
        values.sort_by(f32::total_cmp);
        let worst = values.iter().enumerate().fold(0.0f64, |worst, (rank, &x)| {
            let cdf = 0.5 * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
            worst.max((cdf - rank as f64 / n as f64).abs())
        });
        assert!(worst < 1.95 / (n as f64).sqrt(), "{worst}");
    }

    #[test]
    fn seeds_draws_and_neighbours_are_independent() {
        let n = 100_000;
        let mut source = Portable::new(5);
        let (a, b) = (source.draw(n).unwrap(), source.draw(n).unwrap());
        let other = Portable::new(5 | 1 << 32).draw(n).unwrap();
        let correlation = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>() / a.len() as f64
        };
        for r in [correlation(&a, &b), correlation(&a, &other), correlation(&a[1..], &a[..n - 1])] {
            assert!(r.abs() < 0.015, "{r}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_draw_is_a_prefix_of_every_longer_one(seed: u64, n in 0usize..70_000, more in 0usize..1000) {
            let short = Portable::new(seed).draw(n).unwrap();
            let long = Portable::new(seed).draw(n + more).unwrap();
            prop_assert_eq!(&short[..], &long[..n]);
            prop_assert!(long.iter().all(|x| x.is_finite()));
        }
    }
}
