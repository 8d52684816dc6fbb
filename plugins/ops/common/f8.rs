//! FP8 E4M3 (OCP 8-bit floating point specification): 4 exponent bits, 3 mantissa bits, no infinities.

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// The nearest E4M3 value, ties to even, saturating at ±448.
pub fn round_e4m3(x: f32) -> f32 {
    let a = x.abs().min(MAX);
    // Steps of 2^-9 below 2^-6, else 8 steps per power of two.
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    ((a / step).round_ties_even() * step).min(MAX).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every non-negative E4M3 value, from its bits.
    fn values() -> Vec<f32> {
        let value = |b: u32| match (b >> 3, b & 7) {
            (0, m) => m as f32 / 512.0,
            (e, m) => (1.0 + m as f32 / 8.0) * 2f32.powi(e as i32 - 7),
        };
        (0..0x7f).map(value).collect()
    }

    #[test]
    fn values_stay_and_others_go_to_the_nearest() {
        let values = values();
        assert_eq!(values.last(), Some(&MAX));
        for (i, pair) in values.windows(2).enumerate() {
            let (a, b) = (pair[0], pair[1]);
            assert_eq!(round_e4m3(a), a);
            assert_eq!(round_e4m3(-b), -b);
            let middle = (a + b) / 2.0;
            assert_eq!(round_e4m3(middle), if i % 2 == 0 { a } else { b }, "tie {middle}");
            assert_eq!(round_e4m3(middle.next_down()), a);
            assert_eq!(round_e4m3(middle.next_up()), b);
        }
        assert_eq!(round_e4m3(1e9), MAX);
        assert!(round_e4m3(f32::NAN).is_nan() || round_e4m3(f32::NAN) == MAX);
    }
}
