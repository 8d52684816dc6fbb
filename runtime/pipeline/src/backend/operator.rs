//! One adapter that makes every op of the contract an ONNX Runtime custom operator.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef, ValueRefMut};
use turbo_ops::{AttrKind, AttrValue, Attrs, DataMut, DataRef, Op, TensorMut, TensorRef, Ty};

/// The ops' domain.
pub(super) fn domain(ops: &[&'static Op]) -> ort::Result<OperatorDomain> {
    ops.iter().try_fold(OperatorDomain::new(turbo_ops::DOMAIN)?, |domain, op| domain.add(Adapter(op)))
}

struct Adapter(&'static Op);

/// On the CPU the activation type is f32.
fn element(ty: Ty) -> TensorElementType {
    match ty {
        Ty::T | Ty::F32 => TensorElementType::Float32,
        Ty::I8 => TensorElementType::Int8,
        Ty::I32 => TensorElementType::Int32,
    }
}

impl Operator for Adapter {
    type Kernel<'a> = Bound;

    fn name(&self) -> &str {
        self.0.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.0.inputs.iter().map(|def| OperatorInput::required(element(def.ty)))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.0.outputs.iter().map(|def| OperatorOutput::required(element(def.ty)))
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<Bound> {
        let op = self.0;
        let mut attrs = Attrs::new();
        for def in op.attrs {
            let value = match def.kind {
                AttrKind::Int => context.get::<i64>(def.name).map(AttrValue::Int),
                AttrKind::Float => context.get::<f32>(def.name).map(AttrValue::Float),
                AttrKind::Choice(_) => context.get::<String>(def.name).map(AttrValue::Choice),
            };
            let value = value.ok_or_else(|| {
                ort::Error::new(format!(
                    "{}: attribute `{}` is missing or of another type",
                    op.name, def.name
                ))
            })?;
            attrs = attrs.with(def.name, value);
        }
        Ok(Bound { op, attrs })
    }
}

/// An op with the attributes of one node.
struct Bound {
    op: &'static Op,
    attrs: Attrs,
}

impl Kernel for Bound {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        // A panic must not cross into C++.
        match catch_unwind(AssertUnwindSafe(|| self.run(context))) {
            Ok(result) => result,
            Err(_) => Err(ort::Error::new(format!("{}: the kernel panicked", self.op.name))),
        }
    }
}

fn shape_of(value: &ValueRef<'_>) -> Vec<usize> {
    value.shape().iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect()
}

impl Bound {
    fn run(&self, context: &ComputeContext) -> ort::Result<()> {
        let op = self.op;
        let failed = |error: turbo_ops::OpError| ort::Error::new(error.to_string());
        let values: Vec<ValueRef<'_>> = (op.inputs.iter().enumerate())
            .map(|(i, def)| {
                context
                    .input(i)?
                    .ok_or_else(|| ort::Error::new(format!("{}: `{}` is absent", op.name, def.name)))
            })
            .collect::<ort::Result<_>>()?;
        let shapes: Vec<Vec<usize>> = values.iter().map(shape_of).collect();
        let inputs: Vec<TensorRef<'_>> = (values.iter().zip(&shapes).zip(op.inputs))
            .map(|((value, shape), def)| {
                let data = match def.ty {
                    Ty::T | Ty::F32 => DataRef::F32(value.try_extract_tensor::<f32>()?.1),
                    Ty::I8 => DataRef::I8(value.try_extract_tensor::<i8>()?.1),
                    Ty::I32 => DataRef::I32(value.try_extract_tensor::<i32>()?.1),
                };
                Ok(TensorRef { shape, data })
            })
            .collect::<ort::Result<_>>()?;
        let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let dims = op.check(&self.attrs, &views).map_err(failed)?;
        let out_shapes = op.output_shapes(&self.attrs, &dims).map_err(failed)?;
        let mut outputs: Vec<ValueRefMut<'_>> = (op.outputs.iter().zip(&out_shapes).enumerate())
            .map(|(i, (def, shape))| {
                let shape: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
                let value = context.output(i, shape)?;
                value.ok_or_else(|| ort::Error::new(format!("{}: `{}` is not wanted", op.name, def.name)))
            })
            .collect::<ort::Result<_>>()?;
        let mut results: Vec<TensorMut<'_>> = (outputs.iter_mut().zip(&out_shapes).zip(op.outputs))
            .map(|((value, shape), def)| {
                let data = match def.ty {
                    Ty::T | Ty::F32 => DataMut::F32(value.try_extract_tensor_mut::<f32>()?.1),
                    Ty::I8 => DataMut::I8(value.try_extract_tensor_mut::<i8>()?.1),
                    Ty::I32 => DataMut::I32(value.try_extract_tensor_mut::<i32>()?.1),
                };
                Ok(TensorMut { shape, data })
            })
            .collect::<ort::Result<_>>()?;
        op.run_into(&self.attrs, &inputs, &mut results).map_err(failed)
    }
}
