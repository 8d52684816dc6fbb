//! Tensors as ops see them: a shape and contiguous row-major elements.

/// Owned elements. Floating-point values are kept in f64 for the references and in f32 for the kernels.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Reference precision.
    F64(Vec<f64>),
    /// Kernel precision on the CPU.
    F32(Vec<f32>),
    /// Quantised values.
    I8(Vec<i8>),
    /// Indices.
    I32(Vec<i32>),
}

/// An owned tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements, `shape.product()` of them.
    pub data: Data,
}

/// Borrowed elements of a kernel input.
#[derive(Clone, Copy, Debug)]
pub enum DataRef<'a> {
    /// f32 elements.
    F32(&'a [f32]),
    /// i8 elements.
    I8(&'a [i8]),
    /// i32 elements.
    I32(&'a [i32]),
}

/// A kernel input.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Elements.
    pub data: DataRef<'a>,
}

/// Borrowed elements of a kernel output.
#[derive(Debug)]
pub enum DataMut<'a> {
    /// f32 elements.
    F32(&'a mut [f32]),
    /// i8 elements.
    I8(&'a mut [i8]),
    /// i32 elements.
    I32(&'a mut [i32]),
}

/// A kernel output. Kernels write every element.
#[derive(Debug)]
pub struct TensorMut<'a> {
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Elements.
    pub data: DataMut<'a>,
}

impl Tensor {
    /// An f64 tensor.
    pub fn f64(shape: &[usize], data: Vec<f64>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::F64(data) }
    }
    /// An i8 tensor.
    pub fn i8(shape: &[usize], data: Vec<i8>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::I8(data) }
    }
    /// An i32 tensor.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::I32(data) }
    }

    /// Elements as f64, whatever their type.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F64(v) => v.clone(),
            Data::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::I8(v) => v.iter().map(|&x| x as f64).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }

    /// The f64 elements; empty for other types (definitions are checked before a reference runs).
    pub fn as_f64(&self) -> &[f64] {
        match &self.data {
            Data::F64(v) => v,
            _ => &[],
        }
    }
    /// The i8 elements; empty for other types.
    pub fn as_i8(&self) -> &[i8] {
        match &self.data {
            Data::I8(v) => v,
            _ => &[],
        }
    }
    /// The i32 elements; empty for other types.
    pub fn as_i32(&self) -> &[i32] {
        match &self.data {
            Data::I32(v) => v,
            _ => &[],
        }
    }

    /// The tensor as kernels take it: f64 elements become f32.
    pub fn for_kernel(&self) -> Tensor {
        let data = match &self.data {
            Data::F64(v) => Data::F32(v.iter().map(|&x| x as f32).collect()),
            other => other.clone(),
        };
        Tensor { shape: self.shape.clone(), data }
    }

    /// Borrows for a kernel; call on what [`Tensor::for_kernel`] gave.
    pub fn view(&self) -> TensorRef<'_> {
        let data = match &self.data {
            Data::F32(v) => DataRef::F32(v),
            Data::I8(v) => DataRef::I8(v),
            Data::I32(v) => DataRef::I32(v),
            Data::F64(_) => DataRef::F32(&[]),
        };
        TensorRef { shape: &self.shape, data }
    }

    /// Borrows mutably for a kernel.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        let data = match &mut self.data {
            Data::F32(v) => DataMut::F32(v),
            Data::I8(v) => DataMut::I8(v),
            Data::I32(v) => DataMut::I32(v),
            Data::F64(_) => DataMut::F32(&mut []),
        };
        TensorMut { shape: &self.shape, data }
    }
}

impl<'a> TensorRef<'a> {
    /// The f32 elements; empty for other types (the schema is checked before a kernel runs).
    pub fn f32(&self) -> &'a [f32] {
        match self.data {
            DataRef::F32(v) => v,
            _ => &[],
        }
    }
    /// The i8 elements; empty for other types.
    pub fn i8(&self) -> &'a [i8] {
        match self.data {
            DataRef::I8(v) => v,
            _ => &[],
        }
    }
    /// The i32 elements; empty for other types.
    pub fn i32(&self) -> &'a [i32] {
        match self.data {
            DataRef::I32(v) => v,
            _ => &[],
        }
    }
}

impl TensorMut<'_> {
    /// The f32 elements; empty for other types.
    pub fn f32(&mut self) -> &mut [f32] {
        match &mut self.data {
            DataMut::F32(v) => v,
            _ => &mut [],
        }
    }
    /// The i8 elements; empty for other types.
    pub fn i8(&mut self) -> &mut [i8] {
        match &mut self.data {
            DataMut::I8(v) => v,
            _ => &mut [],
        }
    }
    /// The i32 elements; empty for other types.
    pub fn i32(&mut self) -> &mut [i32] {
        match &mut self.data {
            DataMut::I32(v) => v,
            _ => &mut [],
        }
    }
}
