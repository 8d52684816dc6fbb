//! The names a checkpoint's pickle may use. Everything else is refused when it is named, not when it is
//! called.

use crate::DType;

/// Element type of a storage or tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    /// One that this crate reads.
    Known(DType),
    /// One that torch has and this crate does not read; an error once a tensor needs it.
    Unsupported(&'static str),
    /// Bytes without a type of their own.
    Untyped,
}

impl ElementType {
    /// Bytes of one element, as storages count them.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            ElementType::Known(dtype) => Some(dtype.size()),
            ElementType::Untyped => Some(1),
            ElementType::Unsupported(_) => None,
        }
    }
}

/// An allowed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`.
    RebuildTensorV2,
    /// `torch._utils._rebuild_tensor_v3`: as v2, with the dtype behind the hooks.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`.
    RebuildParameter,
    /// `torch.Size(tuple)`.
    Size,
    /// A class such as `torch.FloatStorage`; named in storage ids, never called.
    Storage(ElementType),
    /// A value such as `torch.bfloat16`.
    DType(ElementType),
}

impl Global {
    /// The allowed global with this name, if it is allowed.
    pub(super) fn lookup(module: &str, name: &str) -> Option<Global> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensorV3),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch", "Size") => Some(Global::Size),
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
                Some(Global::Storage(ElementType::Untyped))
            }
            ("torch.storage", "TypedStorage") => {
                Some(Global::Storage(ElementType::Unsupported("TypedStorage")))
            }
            ("torch", _) => {
                storage_class(name).map(Global::Storage).or_else(|| dtype(name).map(Global::DType))
            }
            _ => None,
        }
    }
}

/// The storage classes of `torch/__init__.py` and their element types.
fn storage_class(name: &str) -> Option<ElementType> {
    use ElementType::{Known, Unsupported};
    Some(match name {
        "DoubleStorage" => Known(DType::F64),
        "FloatStorage" => Known(DType::F32),
        "HalfStorage" => Known(DType::F16),
        "BFloat16Storage" => Known(DType::Bf16),
        "LongStorage" => Known(DType::I64),
        "IntStorage" => Known(DType::I32),
        "ShortStorage" => Known(DType::I16),
        "CharStorage" => Known(DType::I8),
        "ByteStorage" => Known(DType::U8),
        "BoolStorage" => Known(DType::Bool),
        "ComplexFloatStorage" => Unsupported("complex64"),
        "ComplexDoubleStorage" => Unsupported("complex128"),
        "QInt8Storage" => Unsupported("qint8"),
        "QUInt8Storage" => Unsupported("quint8"),
        "QInt32Storage" => Unsupported("qint32"),
        "QUInt4x2Storage" => Unsupported("quint4x2"),
        "QUInt2x4Storage" => Unsupported("quint2x4"),
        _ => return None,
    })
}

/// The dtypes of torch.
fn dtype(name: &str) -> Option<ElementType> {
    use ElementType::{Known, Unsupported};
    Some(match name {
        "float64" | "double" => Known(DType::F64),
        "float32" | "float" => Known(DType::F32),
        "float16" | "half" => Known(DType::F16),
        "bfloat16" => Known(DType::Bf16),
        "float8_e4m3fn" => Known(DType::F8E4M3),
        "float8_e5m2" => Known(DType::F8E5M2),
        "int64" | "long" => Known(DType::I64),
        "int32" | "int" => Known(DType::I32),
        "int16" | "short" => Known(DType::I16),
        "int8" => Known(DType::I8),
        "uint8" => Known(DType::U8),
        "bool" => Known(DType::Bool),
        "uint16" => Unsupported("uint16"),
        "uint32" => Unsupported("uint32"),
        "uint64" => Unsupported("uint64"),
        "complex32" => Unsupported("complex32"),
        "complex64" => Unsupported("complex64"),
        "complex128" => Unsupported("complex128"),
        "float8_e4m3fnuz" => Unsupported("float8_e4m3fnuz"),
        "float8_e5m2fnuz" => Unsupported("float8_e5m2fnuz"),
        "float8_e8m0fnu" => Unsupported("float8_e8m0fnu"),
        "float4_e2m1fn_x2" => Unsupported("float4_e2m1fn_x2"),
        "qint8" => Unsupported("qint8"),
        "quint8" => Unsupported("quint8"),
        "qint32" => Unsupported("qint32"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_runs_code_is_allowed() {
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("__builtin__", "eval"),
            ("subprocess", "Popen"),
            ("torch", "load"),
            ("torch", "os"),
            ("torch", "Tensor"),
            ("torch._utils", "os"),
            ("torch.storage", "_load_from_bytes"),
            ("torch.jit", "load"),
            ("collections", "namedtuple"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("", ""),
        ] {
            assert_eq!(Global::lookup(module, name), None, "{module}.{name}");
        }
    }
}
