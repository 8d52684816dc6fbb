//! Every case of every op, run by ONNX Runtime: once through our kernels, once written out in standard operators.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use std::sync::Arc;

use turbo_graph::{DType, Graph, GraphError};
use turbo_onnx::encode_with_weight_inputs;
use turbo_ops::{Case, Data, Op, Ty};
use turbo_pipeline::backend::{self, BackendError, Options, Runtime, Session};

/// ONNX Runtime, or `None` with a word about it where there is none and nothing asks for one.
fn runtime() -> Option<Runtime> {
    match backend::init(None, None) {
        Ok(runtime) => Some(runtime),
        Err(BackendError::NotFound { .. }) if std::env::var_os("TURBO_REQUIRE_ORT").is_none() => {
            println!("skipped: no ONNX Runtime here");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One node of the op, its inputs and outputs those of the graph.
fn graph(op: &Op, case: &Case, inputs: &[turbo_ops::Tensor]) -> Result<Graph, GraphError> {
    let mut g = Graph::new(op.name);
    let values: Vec<_> = (op.inputs.iter().zip(inputs))
        .map(|(def, tensor)| {
            let dtype = match def.ty {
                Ty::T | Ty::F32 => DType::F32,
                Ty::I8 => DType::I8,
                Ty::I32 => DType::I32,
            };
            g.input(def.name, dtype, &tensor.shape)
        })
        .collect();
    let outputs = op.node(&mut g, &case.attrs, &values);
    for (def, value) in op.outputs.iter().zip(outputs) {
        g.output(&format!("{}_out", def.name), value);
    }
    g.finish()
}

fn run(
    runtime: &Runtime,
    op: &Op,
    graph: &Graph,
    inputs: &[turbo_ops::Tensor],
) -> Result<Vec<turbo_ops::Tensor>, BackendError> {
    let graph = encode_with_weight_inputs(graph).unwrap();
    let options = Options { stage: op.name, graph: &graph, weights: vec![], cancelled: Arc::default() };
    let mut session = Session::load(runtime, options)?;
    let inputs: Vec<backend::Tensor> = inputs
        .iter()
        .map(|tensor| {
            let shape = tensor.shape.clone();
            match tensor.for_kernel().data {
                Data::F32(data) => backend::Tensor::f32(shape, data),
                Data::I8(data) => backend::Tensor::i8(shape, data),
                Data::I32(data) => backend::Tensor::i32(shape, data),
                Data::F64(_) => panic!("kernels take no f64"),
            }
        })
        .collect();
    let named: Vec<_> = op.inputs.iter().map(|def| def.name).zip(&inputs).collect();
    let outputs = session.run(&named)?;
    let typed = outputs.iter().zip(op.outputs).map(|((_, tensor), def)| {
        let data = match def.ty {
            Ty::T | Ty::F32 => Data::F32(tensor.as_f32().to_vec()),
            Ty::I8 => Data::I8(tensor.as_i8().to_vec()),
            Ty::I32 => Data::I32(tensor.as_i32().to_vec()),
        };
        turbo_ops::Tensor { shape: tensor.shape.clone(), data }
    });
    Ok(typed.collect())
}

/// Compares what `form` makes of each case with the reference, within the tolerance that the kernels have too,
/// prints the worst error of each op, and fails with all that differ.
fn compare(what: &str, ops: &[&Op], form: fn(Graph) -> Result<Graph, GraphError>) {
    let Some(runtime) = runtime() else { return };
    let (mut wrong, mut total) = (Vec::new(), 0);
    for op in ops {
        let cases = (op.cases)();
        assert!(!cases.is_empty(), "{} has no cases", op.name);
        let mut worst = vec![0.0f64; op.outputs.len()];
        for case in &cases {
            let name = format!("{} case {}", op.name, case.name);
            let inputs = (op.sample)(case);
            let graph = graph(op, case, &inputs).and_then(form).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = match run(&runtime, op, &graph, &inputs) {
                Ok(found) => found,
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let expected = (op.reference)(&case.attrs, &inputs);
            assert_eq!((found.len(), case.tol.len()), (expected.len(), expected.len()), "{name}");
            for (i, def) in op.outputs.iter().enumerate() {
                match case.tol[i].compare(&found[i], &expected[i]) {
                    Ok(error) => worst[i] = worst[i].max(error),
                    Err(error) => wrong.push(format!("{name}, output `{}`: {error}", def.name)),
                }
            }
        }
        total += cases.len();
        let worst: Vec<String> = worst.iter().map(|error| format!("{error:.1e}")).collect();
        println!(
            "{what:8} {:26} {:3} cases, worst error by output {}",
            op.name,
            cases.len(),
            worst.join(" ")
        );
    }
    println!("{what:8} {} ops, {total} cases, ONNX Runtime {}", ops.len(), runtime.version());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ops_through_onnx_runtime() {
    compare("kernels", turbo_ops::ALL, Ok);
}

#[test]
fn ops_expanded_in_onnx_runtime() {
    let expandable: Vec<&Op> = turbo_ops::ALL.iter().copied().filter(|op| op.expand.is_some()).collect();
    let expand = |graph: Graph| {
        let expanded = turbo_ops::schema::expand(&graph)?;
        assert!(expanded.nodes().iter().all(|node| node.domain.is_empty()));
        Ok(expanded)
    };
    compare("standard", &expandable, expand);
}
