//! The backend with ops made for these tests; the product's own ops are compared in the suites that cross crates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use turbo_graph::{Attr, DType, Graph};
use turbo_onnx::encode_with_weight_inputs;
use turbo_ops::schema::no_constraint;
use turbo_ops::{AttrDef, AttrKind, Dim, Op, TensorDef, Ty};

use super::*;

const X: TensorDef = TensorDef { name: "x", ty: Ty::F32, dims: &[Dim::Axis("n")], doc: "" };
const W: TensorDef = TensorDef { name: "w", ty: Ty::I8, dims: &[Dim::Axis("n")], doc: "" };
const Y: TensorDef = TensorDef { name: "y", ..X };

const BASE: Op = Op {
    name: "",
    version: 3,
    summary: "",
    doc: "",
    attrs: &[],
    inputs: &[X],
    outputs: &[Y],
    constraint: no_constraint,
    reference: |_, _| Vec::new(),
    cpu: |_, _, _| (),
    expand: None,
    sample: |_| Vec::new(),
    cases: Vec::new,
};

/// `y = factor * x * w + shift`
const SCALE: Op = Op {
    name: "TurboTestScale",
    attrs: &[
        AttrDef { name: "factor", kind: AttrKind::Int, doc: "" },
        AttrDef { name: "shift", kind: AttrKind::Float, doc: "" },
        AttrDef { name: "mode", kind: AttrKind::Choice(&["plain", "twice"]), doc: "" },
    ],
    inputs: &[X, W],
    cpu: |attrs, inputs, outputs| {
        let twice = if attrs.get_choice("mode") == "twice" { 2.0 } else { 1.0 };
        let factor = twice * attrs.get_int("factor") as f32;
        for ((y, x), w) in outputs[0].f32().iter_mut().zip(inputs[0].f32()).zip(inputs[1].i8()) {
            *y = factor * x * f32::from(*w) + attrs.get_float("shift");
        }
    },
    ..BASE
};

const PANIC: Op = Op {
    name: "TurboTestPanic",
    cpu: |_, inputs, _| panic!("no room for {} elements", inputs[0].f32().len()),
    ..BASE
};

static SLOW_RUNS: AtomicUsize = AtomicUsize::new(0);
const SLOW: Op = Op {
    name: "TurboTestSlow",
    cpu: |_, inputs, outputs| {
        SLOW_RUNS.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(20));
        outputs[0].f32().copy_from_slice(inputs[0].f32());
    },
    ..BASE
};

const OPS: &[&Op] = &[&SCALE, &PANIC, &SLOW];

/// ONNX Runtime, or `None` with a word about it where there is none and nothing asks for one.
fn runtime() -> Option<Runtime> {
    match init(None, None) {
        Ok(runtime) => Some(runtime),
        Err(BackendError::NotFound { .. }) if std::env::var_os("TURBO_REQUIRE_ORT").is_none() => {
            println!("skipped: no ONNX Runtime here");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn load(runtime: &Runtime, graph: Graph, weights: Vec<(String, Bytes)>) -> Result<Session, BackendError> {
    let graph = encode_with_weight_inputs(&graph.finish().unwrap()).unwrap();
    let options = Options { stage: "stage", graph: &graph, weights, cancelled: Arc::default() };
    Session::load_with(runtime, options, OPS)
}

fn floats(data: &[f32]) -> Tensor {
    Tensor::f32(vec![data.len()], data.to_vec())
}

fn first(outputs: Vec<(String, Tensor)>) -> Tensor {
    outputs.into_iter().next().unwrap().1
}

/// A safetensors file of tensors given as type, shape and bytes.
fn stored(tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]) -> Vec<(String, Bytes)> {
    let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    vec![("all.safetensors".to_string(), Arc::new(file))]
}

/// Three attributes of the test op and the two that every node has.
fn attributes() -> Vec<(String, Attr)> {
    vec![
        ("factor".to_string(), Attr::Int(5)),
        ("shift".to_string(), Attr::Float(0.5)),
        ("mode".to_string(), Attr::Str("twice".to_string())),
        ("plugin_version".to_string(), Attr::Str("3".to_string())),
        ("plugin_namespace".to_string(), Attr::Str("turbo".to_string())),
    ]
}

fn scale(attrs: Vec<(String, Attr)>) -> Graph {
    let mut g = Graph::new("scale");
    let x = g.input("x", DType::F32, &[4]);
    let w = g.weight("w", DType::I8, &[4]);
    let y = g.node("turbo", "TurboTestScale", &[Some(x), Some(w)], attrs, &[(DType::F32, vec![4])]);
    g.output("y", y[0]);
    g
}

fn single(op: &str, times: usize) -> Graph {
    let mut g = Graph::new(op);
    let mut x = g.input("x", DType::F32, &[4]);
    let version = ("plugin_version".to_string(), Attr::Str("3".to_string()));
    for _ in 0..times {
        x = g.node("turbo", op, &[Some(x)], vec![version.clone()], &[(DType::F32, vec![4])])[0];
    }
    g.output("y", x);
    g
}

fn scale_weights() -> Vec<(String, Bytes)> {
    stored(&[("w", safetensors::Dtype::I8, &[4], &[1, 2, 3, 0xff])])
}

#[test]
fn an_op_gets_its_attributes_inputs_and_weights() {
    let Some(runtime) = runtime() else { return };
    let mut session = load(&runtime, scale(attributes()), scale_weights()).unwrap();
    assert_eq!(session.input_names().collect::<Vec<_>>(), ["x"]);
    assert_eq!((session.input_shape("x"), session.input_shape("w")), (vec![4], vec![]));
    let outputs = session.run(&[("x", &floats(&[1.0, 1.0, 2.0, 2.0]))]).unwrap();
    assert_eq!((outputs[0].0.as_str(), outputs[0].1.shape.as_slice()), ("y", [4].as_slice()));
    assert_eq!(outputs[0].1.as_f32(), [10.5, 20.5, 60.5, -19.5]);
    assert!(outputs[0].1.as_i8().is_empty());
}

#[test]
fn attributes_that_are_missing_or_wrong_are_refused_at_load() {
    let Some(runtime) = runtime() else { return };
    for (index, name) in ["factor", "shift", "mode"].iter().enumerate() {
        let mut missing = attributes();
        missing.remove(index);
        let mut wrong = attributes();
        wrong[index].1 = Attr::Ints(vec![1]);
        for attrs in [missing, wrong] {
            let error = load(&runtime, scale(attrs), scale_weights()).map(|_| ()).unwrap_err().to_string();
            let expected = format!("TurboTestScale: attribute `{name}` is missing or of another type");
            assert!(error.starts_with("stage: ") && error.contains(&expected), "{error}");
        }
    }
    let mut newer = attributes();
    newer[3].1 = Attr::Str("4".to_string());
    let error = load(&runtime, scale(newer), scale_weights()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("TurboTestScale: the graph needs version `4`, this program has 3"), "{error}");
}

#[test]
fn an_op_that_refuses_its_input_fails_the_run_alone() {
    let Some(runtime) = runtime() else { return };
    let mut attrs = attributes();
    attrs[0].1 = Attr::Int(-5);
    let mut session = load(&runtime, scale(attrs), scale_weights()).unwrap();
    let error = session.run(&[("x", &floats(&[0.0; 4]))]).unwrap_err();
    assert!(matches!(error, BackendError::Run { .. }), "{error}");
    assert!(error.to_string().contains("TurboTestScale: attribute `factor` must be Int"), "{error}");
}

#[test]
fn a_panic_in_a_kernel_is_an_error() {
    let Some(runtime) = runtime() else { return };
    let mut session = load(&runtime, single("TurboTestPanic", 1), vec![]).unwrap();
    for _ in 0..2 {
        let error = session.run(&[("x", &floats(&[0.0; 4]))]).unwrap_err().to_string();
        assert!(error.contains("TurboTestPanic: the kernel panicked: no room for 4 elements"), "{error}");
    }
    // Messages of panics can hold anything; a zero byte makes `ort` panic in turn.
    assert_eq!(operator::error(&PANIC, "a\0b").to_string(), "TurboTestPanic: a b");
}

#[test]
fn an_unknown_op_and_a_damaged_graph_are_refused() {
    let Some(runtime) = runtime() else { return };
    let error = load(&runtime, single("TurboTestNone", 1), vec![]).map(|_| ()).unwrap_err();
    assert!(matches!(&error, BackendError::Load { cause, .. } if cause.contains("TurboTestNone")), "{error}");
    let whole = encode_with_weight_inputs(&single("TurboTestSlow", 3).finish().unwrap()).unwrap();
    for graph in [&b""[..], b"not an ONNX file", &whole[..whole.len() / 2]] {
        let options = Options { stage: "stage", graph, weights: vec![], cancelled: Arc::default() };
        let error = Session::load_with(&runtime, options, OPS).map(|_| ()).unwrap_err();
        assert!(matches!(error, BackendError::Load { .. }), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let Some(runtime) = runtime() else { return };
    let mut session = load(&runtime, scale(attributes()), scale_weights()).unwrap();
    let (right, other) = (floats(&[0.0; 4]), floats(&[0.0; 3]));
    let short = Tensor::f32(vec![4], vec![0.0; 3]);
    let typed = Tensor::i32(vec![4], vec![0; 4]);
    let cases: [(&[(&str, &Tensor)], &str); 7] = [
        (&[], "input `x` must be f32[4], found nothing"),
        (&[("x", &other)], "input `x` must be f32[4], found f32[3]"),
        (&[("x", &short)], "input `x` must be f32[4], found 3 elements"),
        (&[("x", &typed)], "input `x` must be f32[4], found i32[4]"),
        (&[("z", &right), ("x", &right)], "input `z` must be absent, or given once, found f32[4]"),
        (&[("x", &right), ("x", &right)], "input `x` must be absent, or given once, found f32[4]"),
        (&[("x", &right), ("w", &right)], "input `w` must be absent, or given once, found f32[4]"),
    ];
    for (inputs, expected) in cases {
        assert_eq!(session.run(inputs).unwrap_err().to_string(), format!("stage: {expected}"));
    }
    assert!(session.run(&[("x", &right)]).is_ok());
}

#[test]
fn weights_that_do_not_fit_are_named() {
    use safetensors::Dtype::{F32, I8};
    let Some(runtime) = runtime() else { return };
    let refused = |weights| load(&runtime, scale(attributes()), weights).map(|_| ()).unwrap_err().to_string();
    assert_eq!(
        refused(stored(&[("w", I8, &[2, 2], &[0; 4])])),
        "stage: weight w must be i8[4], found i8[2, 2]"
    );
    assert_eq!(refused(stored(&[("w", F32, &[4], &[0; 16])])), "stage: weight w must be i8[4], found f32[4]");
    let twice = [scale_weights(), scale_weights()].concat();
    assert!(refused(twice).contains("weight w is in all.safetensors and in another file"));
    let whole = (*scale_weights()[0].1).as_ref().to_vec();
    let cut: Bytes = Arc::new(whole[..whole.len() - 1].to_vec());
    assert!(refused(vec![("cut".to_string(), cut)]).contains("the weights in cut cannot be read"));
    // A weight that is nowhere is an input that nobody gives.
    let mut session = load(&runtime, scale(attributes()), vec![]).unwrap();
    let error = session.run(&[("x", &floats(&[0.0; 4]))]).unwrap_err().to_string();
    assert_eq!(error, "stage: input `w` must be i8[4], found nothing");
}

#[test]
fn elements_between_addresses_are_refused() {
    let Some(runtime) = runtime() else { return };
    struct Shifted(Vec<u64>, usize);
    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &bytemuck::cast_slice(&self.0)[1..1 + self.1]
        }
    }
    let file = stored(&[("w", safetensors::Dtype::F32, &[4], &[0; 16])]);
    let bytes = (*file[0].1).as_ref();
    let mut shifted = vec![0u64; bytes.len() / 8 + 1];
    bytemuck::cast_slice_mut(&mut shifted)[1..1 + bytes.len()].copy_from_slice(bytes);
    let weights: Bytes = Arc::new(Shifted(shifted, bytes.len()));
    let mut g = Graph::new("add");
    let x = g.input("x", DType::F32, &[4]);
    let w = g.weight("w", DType::F32, &[4]);
    let y = g.add(x, w);
    g.output("y", y);
    let error = load(&runtime, g, vec![("shifted".to_string(), weights)]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("weight w: its bytes are unusable"), "{error}");
}

#[test]
fn every_element_type_goes_in_and_out() {
    let Some(runtime) = runtime() else { return };
    let mut g = Graph::new("types");
    for dtype in [DType::F32, DType::I64, DType::I32, DType::I8, DType::U8] {
        let x = g.input(dtype.name(), dtype, &[2, 1]);
        let y = g.identity(x);
        g.output(&format!("{dtype}_out"), y);
    }
    let mut session = load(&runtime, g, vec![]).unwrap();
    let shape = || vec![2, 1];
    let (a, b) = (Tensor::f32(shape(), vec![1.5, -2.0]), Tensor::i64(shape(), vec![1 << 40, -1]));
    let (c, d) = (Tensor::i32(shape(), vec![1 << 20, -1]), Tensor::i8(shape(), vec![-128, 127]));
    let e = Tensor::u8(shape(), vec![0, 255]);
    let inputs = [("u8", &e), ("f32", &a), ("i64", &b), ("i32", &c), ("i8", &d)];
    let outputs = session.run(&inputs).unwrap();
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["f32_out", "i64_out", "i32_out", "i8_out", "u8_out"]);
    assert_eq!(outputs[0].1.as_f32(), a.as_f32());
    assert_eq!(outputs[1].1.as_i64(), b.as_i64());
    assert_eq!(outputs[2].1.as_i32(), c.as_i32());
    assert_eq!(outputs[3].1.as_i8(), d.as_i8());
    assert_eq!(outputs[4].1.as_u8(), e.as_u8());
}

#[test]
fn outputs_go_on_as_inputs_even_of_another_session() {
    let Some(runtime) = runtime() else { return };
    let counter = || {
        let mut g = Graph::new("counter");
        let x = g.input("x", DType::F32, &[2]);
        let y = g.add_scalar(x, 1.0);
        g.output("y", y);
        load(&runtime, g, vec![]).unwrap()
    };
    let mut session = counter();
    let mut state = floats(&[0.0, 10.0]);
    for _ in 0..3 {
        state = first(session.run(&[("x", &state)]).unwrap());
    }
    drop(session);
    assert_eq!(state.as_f32(), [3.0, 13.0]);
    state.as_f32_mut()[0] = 100.0;
    let next = first(counter().run(&[("x", &state)]).unwrap());
    assert_eq!((next.as_f32(), state.as_f32()), ([101.0, 14.0].as_slice(), [100.0, 13.0].as_slice()));
}

#[test]
fn a_run_stops_when_asked() {
    let Some(runtime) = runtime() else { return };
    let cancelled = Arc::new(AtomicBool::new(false));
    let graph = encode_with_weight_inputs(&single("TurboTestSlow", 500).finish().unwrap()).unwrap();
    let options = Options { stage: "stage", graph: &graph, weights: vec![], cancelled: cancelled.clone() };
    let mut session = Session::load_with(&runtime, options, OPS).unwrap();
    let asked = std::thread::spawn(move || {
        while SLOW_RUNS.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        cancelled.store(true, Ordering::SeqCst);
    });
    let error = session.run(&[("x", &floats(&[0.0; 4]))]).unwrap_err();
    asked.join().unwrap();
    assert!(matches!(error, BackendError::Cancelled), "{error}");
    assert!(SLOW_RUNS.load(Ordering::SeqCst) < 400);
}

#[test]
fn a_process_holds_one_library() {
    let Some(runtime) = runtime() else { return };
    assert_eq!(init(None, None).unwrap().version(), runtime.version());
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("libonnxruntime.so");
    std::fs::write(&other, "").unwrap();
    let error = init(Some(&other), None).unwrap_err();
    assert!(matches!(error, BackendError::AlreadyLoaded { .. }), "{error}");
}
