//! A tensor in a mapped file.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::dtype::element_count;
use crate::{DType, Error};

/// Most axes a tensor may have; torch's own limit.
pub(crate) const MAX_RANK: usize = 64;

/// A named tensor whose elements lie in a mapped file. Cheap to copy.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Name in the file, untouched.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Lengths of the axes, outermost first; empty for a scalar.
    pub shape: &'a [usize],
    /// The file that holds the elements.
    pub file: &'a Path,
    /// From the first byte of the first element to the last byte of the element furthest behind it.
    pub(crate) data: &'a [u8],
    /// Distance in elements from one index to the next, per axis; `None` when row-major without gaps.
    /// With strides set, the constructor has checked that every index lies inside `data`.
    pub(crate) strides: Option<&'a [usize]>,
}

impl<'a> TensorView<'a> {
    /// Elements as contiguous little-endian bytes in row-major order. Borrowed from the map, except for a
    /// strided PyTorch tensor, which is gathered.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        if self.strides.is_none() {
            return Cow::Borrowed(self.data);
        }
        let mut gathered = Vec::with_capacity(self.byte_len());
        self.for_each_run(|run| gathered.extend_from_slice(run));
        Cow::Owned(gathered)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        // The shape was checked when the file was opened.
        element_count(self.shape).unwrap_or(0)
    }

    /// Length of [`bytes`](Self::bytes), without gathering anything.
    pub fn byte_len(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Elements as `f32`, row-major; exact for every float type but `F64`, which rounds to nearest.
    ///
    /// # Errors
    /// [`Error::NotFloat`] for integer and boolean tensors.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let bytes = self.bytes();
        Ok(match self.dtype {
            DType::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            DType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            DType::F16 => widen_f16(&bytes),
            DType::Bf16 => bytes.as_chunks().0.iter().map(|&b| bf16_to_f32(u16::from_le_bytes(b))).collect(),
            DType::F8E4M3 => {
                let values: [f32; 256] = std::array::from_fn(|byte| e4m3_to_f32(byte as u8));
                bytes.iter().map(|&b| values[usize::from(b)]).collect()
            }
            DType::F8E5M2 => bytes.iter().map(|&b| f16::from_bits(u16::from(b) << 8).to_f32()).collect(),
            DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => {
                return Err(Error::NotFloat {
                    path: self.file.to_owned(),
                    tensor: self.name.to_owned(),
                    found: self.dtype,
                });
            }
        })
    }

    /// Calls `visit` with runs of bytes that, one after the other, are the elements in row-major order.
    pub(crate) fn for_each_run(&self, mut visit: impl FnMut(&'a [u8])) {
        let Some(strides) = self.strides else {
            return visit(self.data);
        };
        if self.elements() == 0 {
            return;
        }
        // The innermost axes that lie without gaps make one run; the others are counted like an odometer.
        let mut run = 1;
        let mut outer = self.shape.len();
        while outer > 0 && (strides[outer - 1] == run || self.shape[outer - 1] == 1) {
            run *= self.shape[outer - 1];
            outer -= 1;
        }
        let size = self.dtype.size();
        let mut index = [0; MAX_RANK];
        let mut at = 0;
        loop {
            visit(&self.data[at * size..(at + run) * size]);
            let mut axis = outer;
            loop {
                let Some(next) = axis.checked_sub(1) else { return };
                axis = next;
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    at += strides[axis];
                    break;
                }
                at -= strides[axis] * (self.shape[axis] - 1);
                index[axis] = 0;
            }
        }
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {:?} in {}", self.name, self.dtype, self.shape, self.file.display())
    }
}

/// Widens block by block: the file gives no alignment, and the vector conversion needs one.
fn widen_f16(bytes: &[u8]) -> Vec<f32> {
    const BLOCK: usize = 1024;
    let mut out = vec![0.0; bytes.len() / 2];
    let mut block = [f16::ZERO; BLOCK];
    for (source, target) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
        let block = &mut block[..target.len()];
        for (value, &pair) in block.iter_mut().zip(source.as_chunks().0) {
            *value = f16::from_le_bytes(pair);
        }
        block.convert_to_f32_slice(target);
    }
    out
}

/// A bf16 is the upper half of the f32 of the same value.
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// OCP 8-bit floating point specification (2023), E4M3: bias 7, subnormals in steps of 2^-9, no infinities.
fn e4m3_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (u32::from(byte >> 3 & 0xf), u32::from(byte & 7));
    sign * match (exponent, mantissa) {
        (0xf, 7) => f32::NAN,
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(
        dtype: DType,
        shape: &'a [usize],
        strides: Option<&'a [usize]>,
        data: &'a [u8],
    ) -> TensorView<'a> {
        TensorView { name: "t", dtype, shape, file: Path::new("f"), data, strides }
    }

    #[test]
    fn strided_tensors_are_gathered_in_row_major_order() {
        // Naive gather: every index by its own sum of products.
        let data: Vec<u8> = (0..60).collect();
        for (shape, strides) in [
            (vec![3, 4], vec![1, 3]),
            (vec![3, 4], vec![8, 2]),
            (vec![2, 3, 4], vec![20, 5, 1]),
            (vec![2, 3, 4], vec![1, 2, 6]),
            (vec![5, 1, 4], vec![4, 999, 1]),
            (vec![4], vec![7]),
            (vec![2, 0, 4], vec![20, 5, 1]),
            (vec![], vec![]),
        ] {
            let mut expected = vec![];
            let total: usize = shape.iter().product();
            for flat in 0..total {
                let mut rest = flat;
                let mut at = 0;
                for axis in (0..shape.len()).rev() {
                    at += rest % shape[axis] * strides[axis];
                    rest /= shape[axis];
                }
                expected.push(data[at]);
            }
            let view = view(DType::U8, &shape, Some(&strides), &data);
            assert_eq!(*view.bytes(), *expected, "{shape:?} {strides:?}");
            assert_eq!(view.byte_len(), expected.len());
        }
    }

    #[test]
    fn contiguous_bytes_are_borrowed() {
        let data = [1, 2, 3, 4];
        let borrowed = view(DType::I16, &[2], None, &data).bytes();
        assert!(matches!(borrowed, Cow::Borrowed(b) if std::ptr::eq(b, &data[..])));
    }

    #[test]
    fn floats_widen_exactly() {
        let e4m3 = [0x00, 0x01, 0x07, 0x08, 0x38, 0x7e, 0x80, 0xb9, 0xfe];
        let expected = [0.0, 1.0 / 512.0, 7.0 / 512.0, 1.0 / 64.0, 1.0, 448.0, -0.0, -1.125, -448.0];
        assert_eq!(view(DType::F8E4M3, &[9], None, &e4m3).to_f32().unwrap(), expected);
        assert!(view(DType::F8E4M3, &[2], None, &[0x7f, 0xff]).to_f32().unwrap().iter().all(|v| v.is_nan()));

        let e5m2 = [0x01, 0x3c, 0x7b, 0x7c, 0xc0];
        let expected = [2f32.powi(-16), 1.0, 57344.0, f32::INFINITY, -2.0];
        assert_eq!(view(DType::F8E5M2, &[5], None, &e5m2).to_f32().unwrap(), expected);

        // More than one block, with a ragged end and at an odd address.
        let values: Vec<f32> = (0..3001).map(|i| (i as f32 - 1500.0) / 8.0).collect();
        let mut half = vec![0];
        half.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
        assert_eq!(view(DType::F16, &[3001], None, &half[1..]).to_f32().unwrap(), values);
        let mut brain = vec![0];
        brain.extend((0..3001).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()));
        let expected: Vec<f32> = (0..3001).map(|i| half::bf16::from_f32(i as f32).to_f32()).collect();
        assert_eq!(view(DType::Bf16, &[3001], None, &brain[1..]).to_f32().unwrap(), expected);

        let double = [1.5f64, -2.25].map(f64::to_le_bytes).concat();
        assert_eq!(view(DType::F64, &[2], None, &double).to_f32().unwrap(), [1.5, -2.25]);
        assert!(matches!(view(DType::I8, &[2], None, &[1, 2]).to_f32(), Err(Error::NotFloat { .. })));
    }
}
