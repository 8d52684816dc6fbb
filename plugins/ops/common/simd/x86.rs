//! AVX2 and AVX-512, chosen at run time.

use std::arch::x86_64::*;

use super::{Isa, LANES, Lanes, PairLanes, Portable, Words, Work, word};

/// Runs a kernel on the best set that the processor has.
pub fn dispatch(work: impl Work) {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
    {
        // SAFETY: the features were detected just now.
        unsafe { with_avx512(work) }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were detected just now.
        unsafe { with_avx2(work) }
    } else {
        work.run::<Portable>();
    }
}

#[target_feature(enable = "avx2,fma")]
fn with_avx2(work: impl Work) {
    work.run::<Avx2>();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn with_avx512(work: impl Work) {
    work.run::<Avx512>();
}

/// Two registers of eight lanes. Only [`dispatch`] names it, after detection.
#[derive(Clone, Copy)]
struct Avx2;

/// One register of sixteen lanes, with VNNI. Only [`dispatch`] names it, after detection.
#[derive(Clone, Copy)]
struct Avx512;

impl Isa for Avx2 {
    const FUSED: bool = true;
    type Sums = [__m256; 2];
    type Ints = [__m256i; 2];

    #[inline(always)]
    fn load(x: &Lanes) -> Self::Sums {
        let x = x.as_ptr();
        // SAFETY: both halves of sixteen f32 are read, unaligned; AVX was detected.
        unsafe { [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))] }
    }
    #[inline(always)]
    fn store(x: Self::Sums) -> Lanes {
        let mut out = [0.0; LANES];
        let to = out.as_mut_ptr();
        // SAFETY: both halves of sixteen f32 are written, unaligned; AVX was detected.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
        out
    }
    #[inline(always)]
    fn add_scaled(sums: Self::Sums, a: f32, b: &Lanes) -> Self::Sums {
        let b = Self::load(b);
        // SAFETY: FMA was detected.
        unsafe {
            let a = _mm256_set1_ps(a);
            [_mm256_fmadd_ps(a, b[0], sums[0]), _mm256_fmadd_ps(a, b[1], sums[1])]
        }
    }
    #[inline(always)]
    fn no_ints() -> Self::Ints {
        // SAFETY: AVX was detected.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn add_pairs(ints: Self::Ints, a: [i16; 2], b: &PairLanes) -> Self::Ints {
        let b = b.as_ptr().cast::<__m256i>();
        // SAFETY: sixteen pairs of i16 are two registers, read unaligned; AVX2 was detected.
        unsafe {
            let a = _mm256_set1_epi32(word(a));
            let low = _mm256_madd_epi16(a, _mm256_loadu_si256(b));
            let high = _mm256_madd_epi16(a, _mm256_loadu_si256(b.add(1)));
            [_mm256_add_epi32(ints[0], low), _mm256_add_epi32(ints[1], high)]
        }
    }
    #[inline(always)]
    fn to_lanes(ints: Self::Ints) -> Lanes {
        // SAFETY: AVX2 was detected.
        Self::store(unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] })
    }

    const DEPTH: usize = 2;
    const HEIGHT: usize = 6;
    const PANELS: usize = 1;
    const RAISE: i32 = 0;

    #[inline(always)]
    fn left(values: &[i8]) -> i32 {
        Portable::left(values)
    }
    #[inline(always)]
    fn right(values: &[i8]) -> i32 {
        Portable::right(values)
    }
    #[inline(always)]
    fn load_ints(x: &Words) -> Self::Ints {
        let x = x.as_ptr().cast::<__m256i>();
        // SAFETY: both halves of sixteen i32 are read, unaligned; AVX was detected.
        unsafe { [_mm256_loadu_si256(x), _mm256_loadu_si256(x.add(1))] }
    }
    #[inline(always)]
    fn add_words(ints: Self::Ints, a: i32, b: &Words) -> Self::Ints {
        let b = Self::load_ints(b);
        // SAFETY: AVX2 was detected.
        unsafe {
            let a = _mm256_set1_epi32(a);
            let sum = |i: usize| _mm256_add_epi32(ints[i], _mm256_madd_epi16(a, b[i]));
            [sum(0), sum(1)]
        }
    }
    #[inline(always)]
    fn add_ints(sums: Self::Sums, a: f32, ints: Self::Ints) -> Self::Sums {
        // SAFETY: AVX2 and FMA were detected.
        unsafe {
            let a = _mm256_set1_ps(a);
            let sum = |i: usize| _mm256_fmadd_ps(a, _mm256_cvtepi32_ps(ints[i]), sums[i]);
            [sum(0), sum(1)]
        }
    }
}

impl Isa for Avx512 {
    const FUSED: bool = true;
    type Sums = __m512;
    type Ints = __m512i;

    #[inline(always)]
    fn load(x: &Lanes) -> __m512 {
        // SAFETY: sixteen f32 are read, unaligned; AVX-512F was detected.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(x: __m512) -> Lanes {
        let mut out = [0.0; LANES];
        // SAFETY: sixteen f32 are written, unaligned; AVX-512F was detected.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
        out
    }
    #[inline(always)]
    fn add_scaled(sums: __m512, a: f32, b: &Lanes) -> __m512 {
        // SAFETY: AVX-512F was detected.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(a), Self::load(b), sums) }
    }
    #[inline(always)]
    fn no_ints() -> __m512i {
        // SAFETY: AVX-512F was detected.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn add_pairs(ints: __m512i, a: [i16; 2], b: &PairLanes) -> __m512i {
        // SAFETY: sixteen pairs of i16 are one register, read unaligned; AVX-512 VNNI was detected.
        unsafe {
            let b = _mm512_loadu_si512(b.as_ptr().cast());
            _mm512_dpwssd_epi32(ints, _mm512_set1_epi32(word(a)), b)
        }
    }
    #[inline(always)]
    fn to_lanes(ints: __m512i) -> Lanes {
        // SAFETY: AVX-512F was detected.
        Self::store(unsafe { _mm512_cvtepi32_ps(ints) })
    }

    const DEPTH: usize = 4;
    const HEIGHT: usize = 8;
    const PANELS: usize = 2;
    const RAISE: i32 = 128;

    #[inline(always)]
    fn left(values: &[i8]) -> i32 {
        // The other way round in the top bit is the value plus 128, unsigned.
        Self::right(values) ^ i32::from_le_bytes([0x80; 4])
    }
    #[inline(always)]
    fn right(values: &[i8]) -> i32 {
        i32::from_le_bytes([0, 1, 2, 3].map(|i| values.get(i).map_or(0, |&v| v as u8)))
    }
    #[inline(always)]
    fn load_ints(x: &Words) -> __m512i {
        // SAFETY: sixteen i32 are read, unaligned; AVX-512F was detected.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn add_words(ints: __m512i, a: i32, b: &Words) -> __m512i {
        // SAFETY: AVX-512 VNNI was detected.
        unsafe { _mm512_dpbusd_epi32(ints, _mm512_set1_epi32(a), Self::load_ints(b)) }
    }
    #[inline(always)]
    fn add_ints(sums: __m512, a: f32, ints: __m512i) -> __m512 {
        // SAFETY: AVX-512F was detected.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(a), _mm512_cvtepi32_ps(ints), sums) }
    }
}
