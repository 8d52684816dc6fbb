//! Every op as a plugin: the largest case of each and of each format, in bf16, in one engine, against its reference.

use anyhow::Result;
use turbo_graph::{DType, Graph};
use turbo_ops::cases::rel_l2;
use turbo_ops::common::quant::Format;
use turbo_ops::{Case, Op, Tensor, TensorDef, Ty};
use turbo_tests::family::wide;
use turbo_tests::gpu::{ACTIVATION, Gpu};

use crate::report::Report;

/// As the kernels' own tests allow at most: the case's tolerance, and the rounding of values and outputs to bf16.
const BOUND: f64 = 2e-2;

pub fn run(gpu: &Gpu, report: &mut Report) {
    let formats = [Format::Int8, Format::E4m3];
    let largest = |(op, format): (&'static Op, Format)| {
        let elements = |case: &Case| {
            op.inputs.iter().map(|def| size(def, case).iter().product::<usize>()).sum::<usize>()
        };
        let of_format = |case: &Case| Format::of(&case.attrs) == format;
        (op.cases)().into_iter().filter(of_format).max_by_key(elements).map(|case| (op, case))
    };
    let each = turbo_ops::ALL.iter().flat_map(|&op| formats.map(move |format| (op, format)));
    let cases: Vec<(&Op, Case)> = each.filter_map(largest).collect();
    let tensors: Vec<Vec<Tensor>> = cases.iter().map(|(op, case)| (op.sample)(case)).collect();
    let found = engine(gpu, &cases, &tensors);
    for ((op, case), tensors) in cases.iter().zip(&tensors) {
        report.case("op as plugin", &format!("{} {}", op.name, case.name), BOUND, || {
            let found = found.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let expected = (op.reference)(&case.attrs, tensors);
            let far = |(def, expected): (&TensorDef, &Tensor)| {
                let found = wide(&found[&name(op, case, def)]);
                rel_l2(&numbers(case, def, &found), &numbers(case, def, &expected.to_f64()))
            };
            Ok(op.outputs.iter().zip(&expected).map(far).fold(0.0, f64::max))
        });
    }
}

/// A tensor's name in the graph of all cases.
fn name(op: &Op, case: &Case, def: &TensorDef) -> String {
    format!("{}.{}.{}", op.name, Format::of(&case.attrs).word(), def.name)
}

/// What the elements of a tensor mean.
fn numbers(case: &Case, def: &TensorDef, elements: &[f64]) -> Vec<f64> {
    let format = Format::of(&case.attrs);
    let number = |&v: &f64| if def.ty == Ty::I8 { format.value(v as i8).into() } else { v };
    elements.iter().map(number).collect()
}

/// One engine of all nodes, run once.
fn engine(gpu: &Gpu, cases: &[(&Op, Case)], tensors: &[Vec<Tensor>]) -> Result<turbo_tests::gpu::Values> {
    let mut g = Graph::new("ops");
    let mut fed: Vec<(String, Vec<f32>)> = Vec::new();
    for ((op, case), tensors) in cases.iter().zip(tensors) {
        let dtype = |ty| match ty {
            Ty::T => ACTIVATION,
            Ty::F32 => DType::F32,
            Ty::I8 => DType::I8,
            Ty::I32 => DType::I32,
        };
        let name = |def: &TensorDef| name(op, case, def);
        let inputs: Vec<_> =
            op.inputs.iter().map(|def| g.input(&name(def), dtype(def.ty), &size(def, case))).collect();
        let attrs = match case.attrs.get("dtype") {
            Some(_) => case.attrs.clone().choice("dtype", "bf16"),
            None => case.attrs.clone(),
        };
        let outputs = turbo_ops::emit(&mut g, op.name, attrs, &inputs);
        for (def, value) in op.outputs.iter().zip(outputs) {
            g.output(&name(def), value);
        }
        let values = |t: &Tensor| t.to_f64().into_iter().map(|v| v as f32).collect();
        fed.extend(op.inputs.iter().zip(tensors).map(|(def, tensor)| (name(def), values(tensor))));
    }
    let fed: Vec<(&str, &[f32])> = fed.iter().map(|(name, v)| (name.as_str(), v.as_slice())).collect();
    gpu.engine(&g.finish()?, &[])?.run(&fed)
}

fn size(def: &TensorDef, case: &Case) -> Vec<usize> {
    def.dims.iter().map(|dim| dim.eval(&case.attrs, &case.dims).unwrap_or(0)).collect()
}
