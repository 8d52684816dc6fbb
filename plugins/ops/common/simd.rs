//! Vectors of sixteen lanes for the kernels: one source, compiled for several instruction sets.
//!
//! A kernel is a [`Work`], generic over [`Isa`] and inlined whole; [`dispatch`] picks the best set that the
//! processor has. Results may differ between sets in the last bits (fused or separate rounding), never between
//! numbers of threads.

/// Lanes of a vector: queries (or channels) that are worked on side by side.
pub const LANES: usize = 16;
/// Rows of a register tile: six vectors of two AVX2 registers each leave room for the operands.
pub const ROWS: usize = 6;

/// Sixteen f32 lanes.
pub type Lanes = [f32; LANES];
/// Two neighbouring channels of sixteen queries.
pub type PairLanes = [[i16; 2]; LANES];

/// Sixteen words of INT8 values, or sixteen of their sums.
pub type Words = [i32; LANES];

/// An instruction set.
pub trait Isa: Copy {
    /// Whether `a * b + c` is rounded once.
    const FUSED: bool;
    /// Sixteen f32 sums in registers.
    type Sums: Copy;
    /// Sixteen i32 sums in registers.
    type Ints: Copy;

    /// Loads sums.
    fn load(x: &Lanes) -> Self::Sums;
    /// Stores sums.
    fn store(x: Self::Sums) -> Lanes;
    /// `sums + a * b`.
    fn add_scaled(sums: Self::Sums, a: f32, b: &Lanes) -> Self::Sums;
    /// Zeros.
    fn no_ints() -> Self::Ints;
    /// `ints + a[0] * b[][0] + a[1] * b[][1]`, exact.
    fn add_pairs(ints: Self::Ints, a: [i16; 2], b: &PairLanes) -> Self::Ints;
    /// The sums as f32.
    fn to_lanes(ints: Self::Ints) -> Lanes;

    /// INT8 values in a word of an INT8 product.
    const DEPTH: usize;
    /// Rows of a register tile of an INT8 product.
    const HEIGHT: usize;
    /// Vectors of sixteen outputs of that tile: 1 with 6 rows, 2 with 8.
    const PANELS: usize;
    /// What left values are raised by to be unsigned.
    const RAISE: i32;
    /// [`Isa::DEPTH`] left values as a word; missing ones are anything.
    fn left(values: &[i8]) -> i32;
    /// [`Isa::DEPTH`] right values as a word; missing ones are zero.
    fn right(values: &[i8]) -> i32;
    /// Loads integer sums.
    fn load_ints(x: &Words) -> Self::Ints;
    /// `ints + a * b` over the values of the words, exact.
    fn add_words(ints: Self::Ints, a: i32, b: &Words) -> Self::Ints;
    /// `sums + a * ints`.
    fn add_ints(sums: Self::Sums, a: f32, ints: Self::Ints) -> Self::Sums;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

impl Isa for Portable {
    // On AArch64 the fused form is what every processor has; elsewhere it might be a call into libm.
    const FUSED: bool = cfg!(target_arch = "aarch64");
    type Sums = Lanes;
    type Ints = [i32; LANES];

    #[inline(always)]
    fn load(x: &Lanes) -> Lanes {
        *x
    }
    #[inline(always)]
    fn store(x: Lanes) -> Lanes {
        x
    }
    #[inline(always)]
    fn add_scaled(mut sums: Lanes, a: f32, b: &Lanes) -> Lanes {
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum = mul_add::<Self>(a, b, *sum);
        }
        sums
    }
    #[inline(always)]
    fn no_ints() -> [i32; LANES] {
        [0; LANES]
    }
    #[inline(always)]
    fn add_pairs(mut ints: [i32; LANES], a: [i16; 2], b: &PairLanes) -> [i32; LANES] {
        for (int, b) in ints.iter_mut().zip(b) {
            *int += i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
        }
        ints
    }
    #[inline(always)]
    fn to_lanes(ints: [i32; LANES]) -> Lanes {
        ints.map(|x| x as f32)
    }

    const DEPTH: usize = 2;
    const HEIGHT: usize = 6;
    const PANELS: usize = 1;
    const RAISE: i32 = 0;

    #[inline(always)]
    fn left(values: &[i8]) -> i32 {
        word([0, 1].map(|i| values.get(i).map_or(0, |&v| v.into())))
    }
    #[inline(always)]
    fn right(values: &[i8]) -> i32 {
        Self::left(values)
    }
    #[inline(always)]
    fn load_ints(x: &Words) -> Words {
        *x
    }
    #[inline(always)]
    fn add_words(mut ints: Words, a: i32, b: &Words) -> Words {
        let halves = |word: i32| [i32::from(word as i16), word >> 16];
        let a = halves(a);
        for (int, &b) in ints.iter_mut().zip(b) {
            let b = halves(b);
            *int += a[0] * b[0] + a[1] * b[1];
        }
        ints
    }
    #[inline(always)]
    fn add_ints(sums: Lanes, a: f32, ints: Words) -> Lanes {
        Self::add_scaled(sums, a, &Self::to_lanes(ints))
    }
}

/// Two i16 in one word, the first in the low half.
#[inline(always)]
pub fn word(pair: [i16; 2]) -> i32 {
    let [low, high] = pair.map(|x| i32::from(x as u16));
    low | high << 16
}

/// A kernel.
pub trait Work {
    /// Runs it; implementations are `#[inline(always)]`, as everything they call is.
    fn run<I: Isa>(self);
}

/// Runs a kernel on the best instruction set that the processor has.
pub fn dispatch(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    x86::dispatch(work);
    #[cfg(not(target_arch = "x86_64"))]
    work.run::<Portable>();
}

#[cfg(target_arch = "x86_64")]
mod x86;

/// `a * b + c` in the set's own rounding.
#[inline(always)]
pub fn mul_add<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `c += a b` for six rows: `a` holds six values and `b` sixteen lanes per step.
#[inline(always)]
pub fn multiply<I: Isa>(a: &[[f32; ROWS]], b: &[Lanes], c: &mut [Lanes; ROWS]) {
    let mut sums = [I::load(&c[0]); ROWS];
    for (sum, c) in sums.iter_mut().zip(c.iter()) {
        *sum = I::load(c);
    }
    for (a, b) in a.iter().zip(b) {
        for (sum, &a) in sums.iter_mut().zip(a) {
            *sum = I::add_scaled(*sum, a, b);
        }
    }
    for (sum, c) in sums.iter().zip(c.iter_mut()) {
        *c = I::store(*sum);
    }
}

/// `c = a b` for six rows of INT8 values, two channels per step; exact sums, rounded to f32 once.
#[inline(always)]
pub fn multiply_pairs<I: Isa>(a: &[[[i16; 2]; ROWS]], b: &[PairLanes], c: &mut [Lanes; ROWS]) {
    let mut sums = [I::no_ints(); ROWS];
    for (a, b) in a.iter().zip(b) {
        for (sum, &a) in sums.iter_mut().zip(a) {
            *sum = I::add_pairs(*sum, a, b);
        }
    }
    for (sum, c) in sums.iter().zip(c.iter_mut()) {
        *c = I::to_lanes(*sum);
    }
}

/// `2^n e^r` for a whole `n` in [-126, 127] given as `n + MAGIC`, and `|r| <= ln(2) / 2`.
///
/// The polynomial is that of `expf` in the Cephes library; relative error at most 2e-7.
#[inline(always)]
fn scaled_exp<I: Isa>(shifted: f32, r: f32) -> f32 {
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = mul_add::<I>(p, r, c);
    }
    let e = mul_add::<I>(p, r * r, r) + 1.0;
    // The low bits of `n + MAGIC` are n, which goes into the exponent field.
    e * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `1.5 * 2^23`: adding it rounds to a whole number, ties to even.
const MAGIC: f32 = 12_582_912.0;

/// `2^x` for `x <= 127`; zero below `2^-126`. Relative error at most 2e-7.
#[inline(always)]
pub fn exp2<I: Isa>(x: f32) -> f32 {
    let clamped = if x < -126.0 { -126.0 } else { x };
    let shifted = clamped + MAGIC;
    let r = (clamped - (shifted - MAGIC)) * std::f32::consts::LN_2;
    let e = scaled_exp::<I>(shifted, r);
    if x < -126.0 { 0.0 } else { e }
}

/// `e^x` for `x <= 88`; zero below `e^-87`. Relative error at most 2e-7.
#[inline(always)]
pub fn exp<I: Isa>(x: f32) -> f32 {
    // ln 2 in two parts, so that n times the first is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = mul_add::<I>(n, -LOW, mul_add::<I>(n, -HIGH, clamped));
    let e = scaled_exp::<I>(shifted, r);
    if x < -87.0 { 0.0 } else { e }
}

/// `x` times the logistic function of `2 sqrt(2 / pi) (x + 0.044715 x^3)`: GELU with the tanh approximation.
#[inline(always)]
pub fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    const FACTOR: f32 = -std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    let power = FACTOR * (x + 0.044715 * x * x * x);
    // Where the power is cut off the result is below the least normal number.
    x / (1.0 + exp::<I>(if power > 88.0 { 88.0 } else { power }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use rayon::prelude::*;

    use super::*;

    /// Largest relative error over all f32 in `[low, high]`, both of one sign, counted in bits.
    struct Worst<'a>(std::ops::RangeInclusive<u32>, fn(f64) -> f64, bool, &'a AtomicU64);

    impl Work for Worst<'_> {
        #[inline(always)]
        fn run<I: Isa>(self) {
            let Worst(bits, expected, base2, worst) = self;
            let mut error = 0.0f64;
            for x in bits.map(f32::from_bits) {
                let found = if base2 { exp2::<I>(x) } else { exp::<I>(x) };
                let expected = expected(f64::from(x));
                error = error.max((f64::from(found) / expected - 1.0).abs());
            }
            worst.fetch_max(error.to_bits(), Ordering::Relaxed);
        }
    }

    fn worst(from: f32, to: f32, step: u32, expected: fn(f64) -> f64, base2: bool) -> f64 {
        let (from, to) = (from.to_bits(), to.to_bits());
        let worst = AtomicU64::new(0);
        let parts: Vec<u32> = (from..to).step_by(1 << 16).collect();
        parts.par_iter().for_each(|&part| {
            let end = (part + (1 << 16) - 1).min(to).min(part + ((1 << 16) / step));
            dispatch(Worst(part..=end, expected, base2, &worst));
        });
        f64::from_bits(worst.into_inner())
    }

    /// `2^x` splits exactly into `2^n 2^f`, so all `f` in [-1/2, 1/2] are all cases.
    #[test]
    fn exp2_is_within_its_error_everywhere() {
        let base2 = |x: f64| x.exp2();
        let error = worst(1e-5, 0.5, 1, base2, true).max(worst(-1e-5, -0.5, 1, base2, true));
        assert!(error < 2e-7, "{error:.3e}");
        let error = worst(0.5, 126.9, 16, base2, true).max(worst(-0.5, -126.0, 16, base2, true));
        assert!(error < 2e-7, "{error:.3e}");
    }

    #[test]
    fn exp_is_within_its_error() {
        let natural = |x: f64| x.exp();
        let error = worst(1e-5, 87.9, 4, natural, false).max(worst(-1e-5, -86.9, 4, natural, false));
        assert!(error < 2e-7, "{error:.3e}");
    }

    #[test]
    fn ends_of_exp() {
        assert_eq!(exp2::<Portable>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2::<Portable>(-126.5), 0.0);
        assert_eq!(exp2::<Portable>(0.0), 1.0);
        assert_eq!(exp::<Portable>(0.0), 1.0);
        assert_eq!(exp::<Portable>(-1e30), 0.0);
        assert!(exp2::<Portable>(f32::NAN).is_nan());
    }
}
