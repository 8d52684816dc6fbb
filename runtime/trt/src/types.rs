//! Element types and tensors of an engine.

use crate::Error;
use crate::api::RawTensor;
use crate::shim::text;

/// An element type, as the shim numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// float
    F32,
    /// half
    F16,
    /// bfloat16
    Bf16,
    /// signed byte
    I8,
    /// 32-bit integer
    I32,
    /// 64-bit integer
    I64,
    /// truth value
    Bool,
    /// byte
    U8,
    /// E4M3
    F8,
    /// one that this program does not use
    Other,
}

impl DType {
    const ALL: [DType; 10] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::I8,
        DType::I32,
        DType::I64,
        DType::Bool,
        DType::U8,
        DType::F8,
        DType::Other,
    ];

    pub(crate) fn from_raw(raw: i32) -> DType {
        usize::try_from(raw).ok().and_then(|raw| DType::ALL.get(raw)).copied().unwrap_or(DType::Other)
    }

    pub(crate) fn raw(self) -> i32 {
        self as i32
    }

    /// Bytes of an element; none for [`DType::Other`].
    pub fn size(self) -> Option<usize> {
        match self {
            DType::I64 => Some(8),
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::Bf16 => Some(2),
            DType::I8 | DType::Bool | DType::U8 | DType::F8 => Some(1),
            DType::Other => None,
        }
    }
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the graph.
    pub name: String,
    /// Whether it is an input.
    pub is_input: bool,
    /// Element type.
    pub dtype: DType,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Bytes of all elements.
    pub bytes: usize,
}

impl TensorInfo {
    /// # Safety
    /// The name is a live string.
    pub(crate) unsafe fn from_raw(raw: &RawTensor) -> Result<TensorInfo, Error> {
        // SAFETY: the caller says so.
        let name = unsafe { text(raw.name) };
        let unfit = |cause: &str| Error::Engine {
            tensor: Some(name.clone()),
            cause: cause.to_string(),
            log: Vec::new(),
        };
        let rank = usize::try_from(raw.rank).unwrap_or(0);
        let dims = raw.dim.iter().take(rank).map(|&dim| usize::try_from(dim));
        let shape: Vec<usize> =
            dims.collect::<Result<_, _>>().map_err(|_| unfit("its shape is not static"))?;
        let dtype = DType::from_raw(raw.dtype);
        let size = dtype.size().ok_or_else(|| unfit("its element type is unknown"))?;
        let bytes = shape.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim));
        let bytes = bytes.ok_or_else(|| unfit("it is larger than memory"))?;
        Ok(TensorInfo { name, is_input: raw.input != 0, dtype, shape, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_agree() {
        for (number, dtype) in (0..).zip(DType::ALL) {
            assert_eq!((DType::from_raw(number), dtype.raw()), (dtype, number));
        }
        assert_eq!((DType::from_raw(-1), DType::from_raw(99)), (DType::Other, DType::Other));
    }

    #[test]
    fn a_tensor_knows_its_bytes() {
        let mut raw = RawTensor { name: c"x".as_ptr(), dtype: 2, rank: 2, ..RawTensor::EMPTY };
        raw.dim[..2].copy_from_slice(&[3, 5]);
        // SAFETY: the name is a literal.
        let info = unsafe { TensorInfo::from_raw(&raw) }.unwrap();
        assert_eq!((info.name.as_str(), info.dtype, info.bytes), ("x", DType::Bf16, 30));
        raw.dim[1] = -1;
        // SAFETY: the name is a literal.
        assert!(unsafe { TensorInfo::from_raw(&raw) }.unwrap_err().to_string().contains("not static"));
    }
}
