//! Rounding to small float types: FP8 E4M3 (OCP 8-bit floating point specification: 4 exponent bits, 3 mantissa
//! bits, no infinities) and others of few bits.

/// Largest finite E4M3 value.
pub const MAX: f32 = 448.0;

/// The nearest E4M3 value, ties to even, saturating at ±448; NaN stays NaN.
#[inline(always)]
pub fn round_e4m3(x: f32) -> f32 {
    let a = x.abs();
    round_positive::<3, -6>(if a > MAX { MAX } else { a }).copysign(x)
}

/// The nearest value of a type with so many mantissa bits, whose normal numbers start at `2^LEAST`, for `x` from zero
/// to its largest; ties to even, subnormals included.
#[inline(always)]
pub fn round_positive<const MANTISSA: u32, const LEAST: i32>(x: f32) -> f32 {
    let least = f32::from_bits(((LEAST + 127) as u32) << 23);
    let power = if x < least { least } else { x }.to_bits() & 0x7f80_0000;
    // The last bit of this power of two is worth one step of the small type, so adding it rounds.
    let magic = f32::from_bits(power + ((23 - MANTISSA) << 23));
    (x + magic) - magic
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Every non-negative E4M3 value, from its bits.
    fn values() -> Vec<f32> {
        let value = |b: u32| match (b >> 3, b & 7) {
            (0, m) => m as f32 / 512.0,
            (e, m) => (1.0 + m as f32 / 8.0) * 2f32.powi(e as i32 - 7),
        };
        (0..0x7f).map(value).collect()
    }

    /// Rounding is monotonic, so the values and the borders between them are all cases.
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
        assert_eq!(round_e4m3(f32::NEG_INFINITY), -MAX);
        assert!(round_e4m3(f32::NAN).is_nan());
    }

    #[test]
    fn every_bf16_goes_to_the_nearest() {
        let values = values();
        for x in (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32()).filter(|x| !x.is_nan()) {
            let nearest = values
                .iter()
                .enumerate()
                .min_by(|(i, a), (j, b)| {
                    let far = |v: &f32| (x.abs().min(MAX) - *v).abs();
                    far(a).total_cmp(&far(b)).then((i % 2).cmp(&(j % 2)))
                })
                .map(|(_, v)| v.copysign(x));
            assert_eq!(Some(round_e4m3(x)), nearest, "{x}");
        }
    }

    #[test]
    fn half_floats_too() {
        for bits in (0..=f16::MAX.to_f32().to_bits()).step_by(61) {
            let x = f32::from_bits(bits);
            assert_eq!(round_positive::<10, -14>(x), f16::from_f32(x).to_f32(), "{x}");
        }
    }
}
