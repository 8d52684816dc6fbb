//! Element types on the device, and tensors as its bytes.

use half::{bf16, f16};
use rayon::prelude::*;
use turbo_ops::schema::DTYPE_ATTR;
use turbo_ops::{Attrs, Data, Op, Tensor, Ty};

/// An element type, numbered as the library does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Element {
    /// IEEE 754 single.
    F32 = 0,
    /// bfloat16.
    Bf16 = 1,
    /// IEEE 754 half.
    F16 = 2,
    /// Signed byte.
    I8 = 3,
    /// Signed 32-bit integer.
    I32 = 4,
}

/// The types that activations may have, widely used ones first.
pub const ACTIVATIONS: [Element; 3] = [Element::Bf16, Element::F16, Element::F32];

impl Element {
    /// The type on the device of what a definition calls `ty`.
    pub fn of(ty: Ty, activation: Element) -> Element {
        match ty {
            Ty::T => activation,
            Ty::F32 => Element::F32,
            Ty::I8 => Element::I8,
            Ty::I32 => Element::I32,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Element::F32 | Element::I32 => 4,
            Element::Bf16 | Element::F16 => 2,
            Element::I8 => 1,
        }
    }

    /// The name in attributes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
            Element::I8 => "i8",
            Element::I32 => "i32",
        }
    }

    /// The nearest value of this type.
    fn round(self, x: f64) -> f64 {
        match self {
            Element::F32 => f64::from(x as f32),
            Element::Bf16 => bf16::from_f64(x).to_f64(),
            Element::F16 => f16::from_f64(x).to_f64(),
            Element::I8 | Element::I32 => x,
        }
    }
}

/// The activation types that an op is run with; one that has no use for it runs once.
pub fn activations(op: &Op) -> &'static [Element] {
    let typed = op.inputs.iter().chain(op.outputs).any(|def| def.ty == Ty::T);
    if typed { &ACTIVATIONS } else { &ACTIVATIONS[2..] }
}

/// The attributes of a case for another activation type.
pub fn attrs_for(op: &Op, attrs: &Attrs, activation: Element) -> Attrs {
    let told = op.attrs.iter().any(|def| def.name == DTYPE_ATTR.name);
    if told { attrs.clone().choice(DTYPE_ATTR.name, activation.name()) } else { attrs.clone() }
}

/// Rounds floating-point values to what the device holds, so that the reference starts from the same.
pub fn round(tensor: &mut Tensor, element: Element) {
    if let Data::F64(values) = &mut tensor.data {
        values.par_iter_mut().for_each(|x| *x = element.round(*x));
    }
}

/// The elements as bytes of the device. Values of floating-point types have been rounded.
pub fn encode(tensor: &Tensor, element: Element) -> Vec<u8> {
    match &tensor.data {
        Data::F64(v) => encode_floats(v, element),
        Data::F32(v) => bytemuck::cast_slice(v).to_vec(),
        Data::I8(v) => bytemuck::cast_slice(v).to_vec(),
        Data::I32(v) => bytemuck::cast_slice(v).to_vec(),
    }
}

fn encode_floats(values: &[f64], element: Element) -> Vec<u8> {
    fn bytes<T: bytemuck::NoUninit + Send>(values: &[f64], convert: fn(f64) -> T) -> Vec<u8> {
        let converted: Vec<T> = values.par_iter().map(|&x| convert(x)).collect();
        bytemuck::cast_slice(&converted).to_vec()
    }
    match element {
        Element::F32 => bytes(values, |x| x as f32),
        Element::Bf16 => bytes(values, bf16::from_f64),
        Element::F16 => bytes(values, f16::from_f64),
        Element::I8 => bytes(values, |x| x as i8),
        Element::I32 => bytes(values, |x| x as i32),
    }
}

/// A tensor from bytes of the device.
pub fn decode(bytes: &[u8], shape: &[usize], element: Element) -> Tensor {
    fn each<const N: usize, T: Send>(bytes: &[u8], convert: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.par_iter().map(|&part| convert(part)).collect()
    }
    let data = match element {
        Element::F32 => Data::F32(each(bytes, f32::from_le_bytes)),
        Element::Bf16 => Data::F32(each(bytes, |part| bf16::from_le_bytes(part).to_f32())),
        Element::F16 => Data::F32(each(bytes, |part| f16::from_le_bytes(part).to_f32())),
        Element::I8 => Data::I8(each(bytes, i8::from_le_bytes)),
        Element::I32 => Data::I32(each(bytes, i32::from_le_bytes)),
    };
    Tensor { shape: shape.to_vec(), data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        for element in ACTIVATIONS {
            let mut tensor = Tensor::f64(&[5], vec![0.0, -1.5, 3.140_625, 1e-3, -65504.0]);
            round(&mut tensor, element);
            let bytes = encode(&tensor, element);
            assert_eq!(bytes.len(), 5 * element.size());
            assert_eq!(decode(&bytes, &[5], element).to_f64(), tensor.to_f64(), "{}", element.name());
        }
        let tensor = Tensor::i8(&[3], vec![-128, 0, 127]);
        assert_eq!(decode(&encode(&tensor, Element::I8), &[3], Element::I8), tensor);
        let tensor = Tensor::i32(&[2], vec![i32::MIN, 7]);
        assert_eq!(decode(&encode(&tensor, Element::I32), &[2], Element::I32), tensor);
    }

    #[test]
    fn poison_is_no_number() {
        for element in ACTIVATIONS {
            assert!(decode(&[0xff; 4], &[4 / element.size()], element).to_f64()[0].is_nan());
        }
    }

    #[test]
    fn an_op_that_no_input_tells_gets_its_type_as_an_attribute() {
        let op = &turbo_ops::w8a8_linear::OP;
        let attrs = attrs_for(op, &Attrs::new().choice("dtype", "f32"), Element::Bf16);
        assert_eq!(attrs.get_choice("dtype"), "bf16");
        assert_eq!(attrs_for(&turbo_ops::norm::OP, &Attrs::new(), Element::Bf16), Attrs::new());
        assert_eq!(activations(&turbo_ops::w8a8_linear_quantize::OP), [Element::F32]);
        assert_eq!(activations(&turbo_ops::norm_quantize::OP).len(), 3);
    }
}
