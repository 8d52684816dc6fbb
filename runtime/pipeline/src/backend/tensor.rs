//! Tensors that go into and come out of a session.

use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};

/// An input or output: extents and row-major elements.
///
/// What a run returns stays where ONNX Runtime put it, and can be given to the next run, of the same or another
/// session, without a copy.
#[derive(Debug)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    /// An output of a run.
    Held(DynValue),
}

/// Constructor and borrow of one element type.
macro_rules! element {
    ($new:ident, $as:ident, $variant:ident, $ty:ty) => {
        #[doc = concat!("A tensor of `", stringify!($ty), "` elements.")]
        pub fn $new(shape: Vec<usize>, data: Vec<$ty>) -> Self {
            Tensor { shape, data: Data::$variant(data) }
        }

        #[doc = concat!("The `", stringify!($ty), "` elements; empty for other types.")]
        pub fn $as(&self) -> &[$ty] {
            match &self.data {
                Data::$variant(data) => data,
                Data::Held(value) => value.try_extract_tensor().map_or(&[], |(_, data)| data),
                _ => &[],
            }
        }
    };
}

impl Tensor {
    element!(f32, as_f32, F32, f32);
    element!(i64, as_i64, I64, i64);
    element!(i32, as_i32, I32, i32);
    element!(i8, as_i8, I8, i8);
    element!(u8, as_u8, U8, u8);

    /// The `f32` elements to write to; empty for other types.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::F32(data) => data,
            Data::Held(value) => value.try_extract_tensor_mut().map_or(&mut [], |(_, data)| data),
            _ => &mut [],
        }
    }

    /// Takes over an output.
    pub(super) fn held(value: DynValue) -> Self {
        Tensor { shape: extents(value.shape()), data: Data::Held(value) }
    }

    /// The same elements as ONNX Runtime sees them.
    pub(super) fn view(&self) -> ort::Result<SessionInputValue<'_>> {
        match &self.data {
            Data::F32(data) => borrowed(&self.shape, data),
            Data::I64(data) => borrowed(&self.shape, data),
            Data::I32(data) => borrowed(&self.shape, data),
            Data::I8(data) => borrowed(&self.shape, data),
            Data::U8(data) => borrowed(&self.shape, data),
            Data::Held(value) => Ok(value.into()),
        }
    }

    pub(super) fn element(&self) -> Option<TensorElementType> {
        Some(match &self.data {
            Data::F32(_) => TensorElementType::Float32,
            Data::I64(_) => TensorElementType::Int64,
            Data::I32(_) => TensorElementType::Int32,
            Data::I8(_) => TensorElementType::Int8,
            Data::U8(_) => TensorElementType::Uint8,
            Data::Held(value) => return value.dtype().tensor_type(),
        })
    }

    /// Number of elements that the tensor has, which for one made by hand need not be what its shape says.
    pub(super) fn elements(&self) -> Option<usize> {
        match &self.data {
            Data::F32(data) => Some(data.len()),
            Data::I64(data) => Some(data.len()),
            Data::I32(data) => Some(data.len()),
            Data::I8(data) => Some(data.len()),
            Data::U8(data) => Some(data.len()),
            Data::Held(value) => count(&extents(value.shape())),
        }
    }
}

/// Elements lent to ONNX Runtime.
pub(super) fn borrowed<'a, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    shape: &[usize],
    data: &'a [T],
) -> ort::Result<SessionInputValue<'a>> {
    Ok(TensorRef::from_array_view((shape.to_vec(), data))?.into())
}

/// A shape of ONNX Runtime; a dimension that it does not know is 0.
pub(super) fn extents(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect()
}

/// Number of elements of a shape.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Type and shape as messages write them: `f32[1, 105, 256]`.
pub(super) fn describe(element: Option<TensorElementType>, shape: &[usize]) -> String {
    let name = match element {
        Some(TensorElementType::Float32) => "f32".to_string(),
        Some(TensorElementType::Float16) => "f16".to_string(),
        Some(TensorElementType::Bfloat16) => "bf16".to_string(),
        Some(TensorElementType::Int64) => "i64".to_string(),
        Some(TensorElementType::Int32) => "i32".to_string(),
        Some(TensorElementType::Int8) => "i8".to_string(),
        Some(TensorElementType::Uint8) => "u8".to_string(),
        Some(other) => other.to_string(),
        None => "no tensor".to_string(),
    };
    format!("{name}{shape:?}")
}
