//! How the values of a format are laid out in words and multiplied.

use crate::common::quant::Format;
use crate::common::simd::{Isa, LANES};

/// The product of one format.
pub trait Product: Sync {
    /// One or more values.
    type Word: Copy + Default + Send + Sync + 'static;
    /// Sixteen sums of a block in registers.
    type Dots<I: Isa>: Copy;

    /// Values in a word.
    fn depth<I: Isa>() -> usize;
    /// A word of activations.
    fn left<I: Isa>(values: &[i8]) -> Self::Word;
    /// A word of weights.
    fn right<I: Isa>(values: &[i8]) -> Self::Word;
    /// What the sum of a block with these weights starts from.
    fn start<I: Isa>(weights: &[i8]) -> Self::Word;
    /// Loads sums.
    fn load<I: Isa>(x: &[Self::Word; LANES]) -> Self::Dots<I>;
    /// `dots + a * b` over the values of the words.
    fn add<I: Isa>(dots: Self::Dots<I>, a: Self::Word, b: &[Self::Word; LANES]) -> Self::Dots<I>;
    /// `sums + scale * dots`.
    fn add_to<I: Isa>(sums: I::Sums, scale: f32, dots: Self::Dots<I>) -> I::Sums;
}

/// INT8: exact sums.
pub struct Int8;

impl Product for Int8 {
    type Word = i32;
    type Dots<I: Isa> = I::Ints;

    #[inline(always)]
    fn depth<I: Isa>() -> usize {
        I::DEPTH
    }
    #[inline(always)]
    fn left<I: Isa>(values: &[i8]) -> i32 {
        I::left(values)
    }
    #[inline(always)]
    fn right<I: Isa>(values: &[i8]) -> i32 {
        I::right(values)
    }
    /// Undoes [`Isa::RAISE`].
    #[inline(always)]
    fn start<I: Isa>(weights: &[i8]) -> i32 {
        -I::RAISE * weights.iter().map(|&w| i32::from(w)).sum::<i32>()
    }
    #[inline(always)]
    fn load<I: Isa>(x: &[i32; LANES]) -> I::Ints {
        I::load_ints(x)
    }
    #[inline(always)]
    fn add<I: Isa>(dots: I::Ints, a: i32, b: &[i32; LANES]) -> I::Ints {
        I::add_words(dots, a, b)
    }
    #[inline(always)]
    fn add_to<I: Isa>(sums: I::Sums, scale: f32, dots: I::Ints) -> I::Sums {
        I::add_ints(sums, scale, dots)
    }
}

/// E4M3, widened once when it is laid out: a product of two values is exact in f32.
pub struct E4m3;

impl Product for E4m3 {
    type Word = f32;
    type Dots<I: Isa> = I::Sums;

    #[inline(always)]
    fn depth<I: Isa>() -> usize {
        1
    }
    #[inline(always)]
    fn left<I: Isa>(values: &[i8]) -> f32 {
        Format::E4m3.value(values[0])
    }
    #[inline(always)]
    fn right<I: Isa>(values: &[i8]) -> f32 {
        Self::left::<I>(values)
    }
    #[inline(always)]
    fn start<I: Isa>(_: &[i8]) -> f32 {
        0.0
    }
    #[inline(always)]
    fn load<I: Isa>(x: &[f32; LANES]) -> I::Sums {
        I::load(x)
    }
    #[inline(always)]
    fn add<I: Isa>(dots: I::Sums, a: f32, b: &[f32; LANES]) -> I::Sums {
        I::add_scaled(dots, a, b)
    }
    #[inline(always)]
    fn add_to<I: Isa>(sums: I::Sums, scale: f32, dots: I::Sums) -> I::Sums {
        I::add_scaled(sums, scale, &I::store(dots))
    }
}
