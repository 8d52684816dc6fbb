//! Weights in mapped safetensors files, lent to ONNX Runtime where they lie.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ort::session::SessionInputValue;
use ort::value::TensorElementType;
use safetensors::{Dtype, SafeTensors};

use super::tensor::{borrowed, describe};

/// Bytes that lie somewhere for as long as this lives, such as a part of a mapped file.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// One tensor of a weights file.
#[derive(Clone)]
pub(super) struct Weight {
    file: Bytes,
    range: Range<usize>,
    pub(super) element: TensorElementType,
    pub(super) shape: Vec<usize>,
}

/// All tensors of the given safetensors files, by name; files are named for messages only.
pub(super) fn read(files: &[(String, Bytes)]) -> Result<HashMap<String, Weight>, String> {
    let mut weights = HashMap::new();
    for (name, file) in files {
        let bytes = (**file).as_ref();
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|error| format!("the weights in {name} cannot be read: {error}"))?;
        let start = bytes.as_ptr() as usize;
        for (tensor, view) in tensors.iter() {
            // Types that no graph for the CPU holds are left out; a graph that asks for one then says so.
            let Some(element) = element(view.dtype()) else { continue };
            let from = view.data().as_ptr() as usize - start;
            let range = from..from + view.data().len();
            let weight = Weight { file: file.clone(), range, element, shape: view.shape().to_vec() };
            if weights.insert(tensor.to_string(), weight).is_some() {
                return Err(format!("weight {tensor} is in {name} and in another file"));
            }
        }
    }
    Ok(weights)
}

impl Weight {
    /// The mapped elements.
    ///
    /// # Errors
    /// Elements that do not lie at a multiple of their size.
    pub(super) fn view(&self) -> Result<SessionInputValue<'_>, String> {
        let bytes = (*self.file).as_ref().get(self.range.clone()).unwrap_or_default();
        match self.element {
            TensorElementType::Float32 => self.typed::<f32>(bytes),
            TensorElementType::Float16 => self.typed::<half::f16>(bytes),
            TensorElementType::Bfloat16 => self.typed::<half::bf16>(bytes),
            TensorElementType::Int64 => self.typed::<i64>(bytes),
            TensorElementType::Int32 => self.typed::<i32>(bytes),
            TensorElementType::Int8 => self.typed::<i8>(bytes),
            _ => self.typed::<u8>(bytes),
        }
    }

    fn typed<'a, T>(&self, bytes: &'a [u8]) -> Result<SessionInputValue<'a>, String>
    where
        T: ort::value::PrimitiveTensorElementType + bytemuck::AnyBitPattern + Clone + std::fmt::Debug,
    {
        let elements: &[T] =
            bytemuck::try_cast_slice(bytes).map_err(|error| format!("its bytes are unusable: {error}"))?;
        borrowed(&self.shape, elements).map_err(|error| error.to_string())
    }

    pub(super) fn describe(&self) -> String {
        describe(Some(self.element), &self.shape)
    }
}

fn element(dtype: Dtype) -> Option<TensorElementType> {
    Some(match dtype {
        Dtype::F32 => TensorElementType::Float32,
        Dtype::F16 => TensorElementType::Float16,
        Dtype::BF16 => TensorElementType::Bfloat16,
        Dtype::I64 => TensorElementType::Int64,
        Dtype::I32 => TensorElementType::Int32,
        Dtype::I8 => TensorElementType::Int8,
        Dtype::U8 => TensorElementType::Uint8,
        _ => return None,
    })
}
