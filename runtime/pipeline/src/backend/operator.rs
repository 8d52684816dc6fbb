//! One adapter that makes every op of the contract an ONNX Runtime custom operator.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::tensor::extents;
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
        guard(self.0, || Bound::new(self.0, context))
    }
}

/// An op with the attributes of one node.
struct Bound {
    op: &'static Op,
    attrs: Attrs,
}

impl Kernel for Bound {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guard(self.op, || self.run(context))
    }
}

/// Turns a panic into an error, because it must not cross into C++.
fn guard<R>(op: &Op, work: impl FnOnce() -> ort::Result<R>) -> ort::Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(error(op, &format!("the kernel panicked: {said}")))
    })
}

pub(super) fn error(op: &Op, what: &str) -> ort::Error {
    // A zero byte would end the message, and creating it would panic.
    ort::Error::new(format!("{}: {}", op.name, what.replace('\0', " ")))
}

impl Bound {
    fn new(op: &'static Op, context: &KernelContext<'_>) -> ort::Result<Self> {
        let version = context.get::<String>("plugin_version").unwrap_or_default();
        if version != op.version.to_string() {
            let what = format!("the graph needs version `{version}`, this program has {}", op.version);
            return Err(error(op, &what));
        }
        let mut attrs = Attrs::new();
        for def in op.attrs {
            let value = match def.kind {
                AttrKind::Int => context.get::<i64>(def.name).map(AttrValue::Int),
                AttrKind::Float => context.get::<f32>(def.name).map(AttrValue::Float),
                AttrKind::Choice(_) => context.get::<String>(def.name).map(AttrValue::Choice),
            };
            let missing = || error(op, &format!("attribute `{}` is missing or of another type", def.name));
            attrs = attrs.with(def.name, value.ok_or_else(missing)?);
        }
        Ok(Bound { op, attrs })
    }

    fn run(&self, context: &ComputeContext) -> ort::Result<()> {
        let op = self.op;
        let failed = |e: turbo_ops::OpError| error(op, &e.what);
        let values: Vec<ValueRef<'_>> = (op.inputs.iter().enumerate())
            .map(|(i, def)| {
                let value = context.input(i)?;
                value.ok_or_else(|| error(op, &format!("input `{}` is absent", def.name)))
            })
            .collect::<ort::Result<_>>()?;
        let shapes: Vec<Vec<usize>> = values.iter().map(|value| extents(value.shape())).collect();
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
                value.ok_or_else(|| error(op, &format!("output `{}` has no place", def.name)))
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
