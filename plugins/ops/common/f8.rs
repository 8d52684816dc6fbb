//! Rounding to small float types: FP8 E4M3 (OCP 8-bit floating point specification: 4 exponent bits, 3 mantissa
//! bits, no infinities) and others of few bits.

/// Largest finite E4M3 value.
pub const MAX: f32 = 448.0;

/// The value of every E4M3 byte; 0x7f and 0xff are NaN.
pub const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte as u32 >> 3) & 15, byte as u32 & 7);
        let value = match (exponent, mantissa) {
            (0, _) => mantissa as f32 / 512.0,
            (15, 7) => f32::NAN,
            _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
        };
        values[byte] = if byte < 128 { value } else { -value };
        byte += 1;
    }
    values
};

/// The byte of the nearest E4M3 value, ties to even, saturating at ±448; zero for NaN, as integers have it.
#[inline(always)]
pub fn to_byte(x: f32) -> u8 {
    let x = if x.is_nan() { 0.0 } else { x };
    let a = if x.abs() > MAX { MAX } else { x.abs() };
    let power = if a < LEAST { LEAST } else { a }.to_bits() & 0x7f80_0000;
    // As in `round_positive`; the low bits of the sum are the steps from zero: 8 to 16 in a normal number's own power.
    let steps = (a + f32::from_bits(power + (20 << 23))).to_bits() & 31;
    (steps + (power >> 20) - (LEAST.to_bits() >> 20)) as u8 | (x.to_bits() >> 24) as u8 & 0x80
}

/// Least normal E4M3 value.
const LEAST: f32 = 1.0 / 64.0;

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
        for (byte, value) in (0..).zip(values) {
            assert_eq!([VALUES[byte], VALUES[byte | 0x80]], [value, -value]);
        }
        assert!(VALUES[0x7f].is_nan() && VALUES[0xff].is_nan());
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
    fn bytes_are_those_of_the_rounded_values() {
        for x in (0..=u32::MAX).step_by(257).map(f32::from_bits).filter(|x| !x.is_nan()) {
            assert_eq!(VALUES[usize::from(to_byte(x))].to_bits(), round_e4m3(x).to_bits(), "{x}");
        }
        for byte in (0..=255u8).filter(|byte| byte & 0x7f != 0x7f) {
            assert_eq!(to_byte(VALUES[usize::from(byte)]), byte);
        }
        assert_eq!([f32::NAN, -f32::NAN].map(to_byte), [0, 0]);
    }

    #[test]
    fn half_floats_too() {
        for bits in (0..=f16::MAX.to_f32().to_bits()).step_by(61) {
            let x = f32::from_bits(bits);
            assert_eq!(round_positive::<10, -14>(x), f16::from_f32(x).to_f32(), "{x}");
        }
    }
}
