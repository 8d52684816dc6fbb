//! The check for NaN and infinity.

use crate::{DType, Error, NotFinite, TensorView};

/// Checks that a tensor holds no NaN and no infinity. Integer tensors pass.
///
/// Streams over the mapped bytes once, at about the speed of memory, and allocates nothing.
///
/// # Errors
/// [`Error::NotFinite`] with the counts and the index of the first such element.
pub fn check_finite(view: &TensorView<'_>) -> Result<(), Error> {
    let mut found = Found::default();
    // Each type is an integer whose bits below the sign order the magnitudes: all that is at or above
    // `limit` is not finite, and only `infinity` itself is not NaN.
    match view.dtype {
        DType::F64 => view
            .for_each_run(|run| found.scan(run, |b: [u8; 8]| u64::from_le_bytes(b) & (u64::MAX >> 1), F64)),
        DType::F32 => view
            .for_each_run(|run| found.scan(run, |b: [u8; 4]| u32::from_le_bytes(b) & (u32::MAX >> 1), F32)),
        DType::F16 => view
            .for_each_run(|run| found.scan(run, |b: [u8; 2]| u16::from_le_bytes(b) & (u16::MAX >> 1), F16)),
        DType::Bf16 => view
            .for_each_run(|run| found.scan(run, |b: [u8; 2]| u16::from_le_bytes(b) & (u16::MAX >> 1), BF16)),
        DType::F8E4M3 => view.for_each_run(|run| found.scan(run, |[b]: [u8; 1]| b & 0x7f, F8E4M3)),
        DType::F8E5M2 => view.for_each_run(|run| found.scan(run, |[b]: [u8; 1]| b & 0x7f, F8E5M2)),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => {}
    }
    let Some(first) = found.first else { return Ok(()) };
    let problem = NotFinite {
        tensor: view.name.to_owned(),
        dtype: view.dtype,
        shape: view.shape.to_vec(),
        elements: view.elements(),
        nan: found.nan,
        inf: found.inf,
        first: unravel(first, view.shape),
    };
    Err(Error::NotFinite { path: view.file.to_owned(), problem: Box::new(problem) })
}

/// Where the magnitudes of a float type end.
struct Bounds<T> {
    /// Smallest magnitude that is not finite.
    limit: T,
    /// Magnitude of infinity, if the type has one.
    infinity: Option<T>,
}

const F64: Bounds<u64> = ieee(0x7ff0_0000_0000_0000);
const F32: Bounds<u32> = ieee(0x7f80_0000);
const F16: Bounds<u16> = ieee(0x7c00);
const BF16: Bounds<u16> = ieee(0x7f80);
const F8E5M2: Bounds<u8> = ieee(0x7c);
const F8E4M3: Bounds<u8> = Bounds { limit: 0x7f, infinity: None };

const fn ieee<T: Copy>(infinity: T) -> Bounds<T> {
    Bounds { limit: infinity, infinity: Some(infinity) }
}

#[derive(Default)]
struct Found {
    seen: usize,
    nan: usize,
    inf: usize,
    first: Option<usize>,
}

impl Found {
    fn scan<const N: usize, T>(&mut self, run: &[u8], magnitude: impl Fn([u8; N]) -> T, bounds: Bounds<T>)
    where
        T: Ord + Copy + Default,
    {
        // The largest magnitude of a block decides whether to look closer: a maximum is one vector
        // instruction, and nearly every block ends there.
        for block in run.as_chunks::<N>().0.chunks(1024) {
            let largest = block.iter().fold(T::default(), |largest, &b| largest.max(magnitude(b)));
            if largest >= bounds.limit {
                for (offset, &b) in block.iter().enumerate() {
                    let value = magnitude(b);
                    if value >= bounds.limit {
                        self.first.get_or_insert(self.seen + offset);
                        if bounds.infinity == Some(value) { self.inf += 1 } else { self.nan += 1 }
                    }
                }
            }
            self.seen += block.len();
        }
    }
}

/// Index per axis of the row-major position `flat`.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (place, &len) in index.iter_mut().zip(shape).rev() {
        *place = flat % len.max(1);
        flat /= len.max(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(
        dtype: DType,
        shape: &[usize],
        strides: Option<&[usize]>,
        data: &[u8],
    ) -> Option<(usize, usize, Vec<usize>)> {
        let view = TensorView { name: "w", dtype, shape, file: Path::new("f"), data, strides };
        match check_finite(&view) {
            Ok(()) => None,
            Err(Error::NotFinite { problem, .. }) => Some((problem.nan, problem.inf, problem.first)),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn counts_and_places_are_right() {
        let mut values = vec![1.0f32; 5000];
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(check(DType::F32, &[50, 100], None, &bytes(&values)), None);
        values[4321] = f32::NEG_INFINITY;
        values[4999] = f32::NAN;
        values[0] = f32::MAX;
        values[1] = f32::MIN;
        assert_eq!(check(DType::F32, &[50, 100], None, &bytes(&values)), Some((1, 1, vec![43, 21])));
        // Transposed: the element at row 43, column 21 of the storage is at [21, 43].
        assert_eq!(
            check(DType::F32, &[100, 50], Some(&[1, 100]), &bytes(&values)),
            Some((1, 1, vec![21, 43]))
        );
    }

    #[test]
    fn every_bit_pattern_of_the_small_types_agrees_with_their_decoding() {
        for dtype in [DType::F8E4M3, DType::F8E5M2] {
            for byte in 0..=255u8 {
                assert_agrees(dtype, &[byte]);
            }
        }
        for dtype in [DType::F16, DType::Bf16] {
            for pattern in 0..=u16::MAX {
                assert_agrees(dtype, &pattern.to_le_bytes());
            }
        }
        for value in
            [f64::MAX, f64::MIN_POSITIVE, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN]
        {
            let expected = (value.is_nan() as usize, value.is_infinite() as usize, vec![]);
            let found = check(DType::F64, &[], None, &value.to_le_bytes());
            assert_eq!(found, (!value.is_finite()).then_some(expected), "{value}");
        }
    }

    fn assert_agrees(dtype: DType, data: &[u8]) {
        let view = TensorView { name: "w", dtype, shape: &[], file: Path::new("f"), data, strides: None };
        let value = view.to_f32().unwrap()[0];
        let expected = (value.is_nan() as usize, value.is_infinite() as usize, vec![]);
        assert_eq!(
            check(dtype, &[], None, data),
            (!value.is_finite()).then_some(expected),
            "{dtype} {data:?}"
        );
    }

    #[test]
    fn integers_pass() {
        assert_eq!(check(DType::I8, &[4], None, &[0xff; 4]), None);
        assert_eq!(check(DType::I64, &[1], None, &[0xff; 8]), None);
    }
}
