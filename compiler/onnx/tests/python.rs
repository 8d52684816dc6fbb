//! What the `onnx` and `onnxruntime` packages of Python say of the files written here.
//!
//! Needs an interpreter that has both: `TURBO_PYTHON`, else `python3`. Without one the tests say that they are
//! skipped, unless `TURBO_PYTHON` is set.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use std::path::Path;
use std::process::Command;

use turbo_graph::{DType, Graph};
use turbo_onnx::{Place, WeightPlaces, encode};

/// Weights at the given bytes of one file.
struct At<'a>(&'a [(&'a str, u64, u64)]);

impl WeightPlaces for At<'_> {
    fn place(&self, name: &str) -> Option<Place> {
        let &(_, offset, length) = self.0.iter().find(|(found, ..)| *found == name)?;
        Some(Place { location: "weights/all.safetensors".to_string(), offset, length })
    }
}

/// Runs a script in `folder` and gives what it prints; `None` when there is no interpreter for it.
fn python(folder: &Path, script: &str) -> Option<String> {
    let given = std::env::var("TURBO_PYTHON").ok();
    let interpreter = given.clone().unwrap_or_else(|| "python3".to_string());
    let start = |script: &str| Command::new(&interpreter).args(["-c", script]).current_dir(folder).output();
    let ready = start("import numpy, onnx, onnxruntime").is_ok_and(|out| out.status.success());
    if !ready {
        assert!(given.is_none(), "{interpreter} has no numpy, onnx and onnxruntime");
        println!("skipped: {interpreter} has no numpy, onnx and onnxruntime (set TURBO_PYTHON)");
        return None;
    }
    let out = start(script).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

fn write(folder: &Path, graph: &Graph, places: &At) {
    std::fs::write(folder.join("model.onnx"), encode(graph, places).unwrap()).unwrap();
}

const CHECK: &str = "
import onnx
model = onnx.load('model.onnx', load_external_data=False)
onnx.checker.check_model('model.onnx', full_check=True)
inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
assert list(inferred.graph.value_info) == list(model.graph.value_info), 'inference adds or changes shapes'
";

/// Every standard operator that the builder has, in one graph.
fn everything() -> Graph {
    let mut g = Graph::new("everything");
    let x = g.input("x", DType::F32, &[2, 3, 8]);
    let ids = g.input("ids", DType::I64, &[1, 5]);
    let table = g.constant_f32(&[7, 8], &[0.5; 56]);
    let text = g.gather(table, ids);
    g.output("text", text);
    let y = g.scope("arithmetic", |g| {
        let a = g.add_scalar(x, 1.5);
        let b = g.mul_scalar(x, -2.0);
        let y = g.add(a, b);
        let y = g.sub(y, a);
        let y = g.max(y, a);
        let y = g.min(y, b);
        let y = g.abs(y);
        let y = g.sqrt(y);
        let z = g.exp(b);
        let y = g.div(y, z);
        let y = g.cos(y);
        let y = g.sin(y);
        let y = g.round(y);
        let y = g.sigmoid(y);
        let y = g.silu(y);
        let y = g.gelu_tanh(y);
        let y = g.clip(y, -1.0, 1.0);
        let same = g.equal(y, a);
        g.select(same, a, y)
    });
    let y = g.scope("layout", |g| {
        let y = g.reshape(y, &[6, 8]);
        let y = g.transpose(y, &[1, 0]);
        let low = g.slice(y, 1, 0, 2);
        let high = g.slice(y, 1, 2, 6);
        let y = g.concat(&[high, low], 1);
        let y = g.pad(y, &[(0, 0), (1, 1)], 0.0);
        let y = g.reshape(y, &[1, 8, 8]);
        g.expand(y, &[2, 8, 8])
    });
    let y = g.scope("sums", |g| {
        let y = g.softmax(y, 2);
        let sum = g.reduce_sum(y, &[2]);
        let mean = g.reduce_mean(y, &[2]);
        let max = g.reduce_max(y, &[2]);
        let parts = g.concat(&[sum, mean, max], 2);
        let wide = g.matmul(y, parts);
        let (values, indices) = g.top_k(wide, 2);
        g.scatter_last(wide, indices, values)
    });
    let flat = g.reshape(y, &[2, 24]);
    let w = g.constant_f32(&[4, 24], &[0.25; 96]);
    let y = g.gemm(flat, w, None);
    for dtype in [DType::F16, DType::Bf16, DType::I64, DType::I32, DType::I8, DType::U8] {
        let cast = g.cast(y, dtype);
        let back = g.cast(cast, DType::F32);
        g.output(&format!("through_{dtype}"), back);
    }
    let picture = g.reshape(x, &[1, 3, 4, 4]);
    let kernel = g.constant_f32(&[2, 3, 3, 3], &[0.1; 54]);
    let y = g.conv(picture, kernel, None, &[1, 1], &[(1, 1), (1, 1)]);
    g.output("picture", y);
    g.finish().unwrap()
}

#[test]
fn checker_accepts_every_standard_operator() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &everything(), &At(&[]));
    let run = "
import numpy, onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
x = numpy.linspace(-1, 1, 48, dtype=numpy.float32).reshape(2, 3, 8)
outputs = session.run(None, {'x': x, 'ids': numpy.zeros((1, 5), dtype=numpy.int64)})
for declared, found in zip(model.graph.output, outputs):
    shape = [d.dim_value for d in declared.type.tensor_type.shape.dim]
    assert shape == list(found.shape), (declared.name, shape, found.shape)
print(len(outputs))
";
    if let Some(out) = python(folder.path(), &format!("{CHECK}{run}")) {
        assert_eq!(out.trim(), "8");
    }
}

#[test]
fn checker_accepts_custom_operators_with_all_attributes() {
    use turbo_graph::Attr;
    let folder = tempfile::tempdir().unwrap();
    let mut g = Graph::new("custom");
    let x = g.input("x", DType::F32, &[2, 4]);
    let attrs = vec![
        ("block".to_string(), Attr::Int(128)),
        ("eps".to_string(), Attr::Float(1e-6)),
        ("form".to_string(), Attr::Str("sage".to_string())),
        ("sizes".to_string(), Attr::Ints(vec![1, 2, 2])),
    ];
    let y = g.node("turbo", "TurboThing", &[Some(x), None, Some(x)], attrs, &[(DType::F32, vec![2, 4])]);
    g.output("y", y[0]);
    write(folder.path(), &g.finish().unwrap(), &At(&[]));
    let show = "
node = model.graph.node[0]
print(node.domain, node.op_type, list(node.input))
for a in node.attribute:
    print(a.name, onnx.AttributeProto.AttributeType.Name(a.type), onnx.helper.get_attribute_value(a))
print([(o.domain, o.version) for o in model.opset_import], model.ir_version, model.producer_name)
";
    // Strict inference refuses operators that it does not know, so only the checker is asked here.
    let check = CHECK.lines().filter(|line| !line.contains("infer")).collect::<Vec<_>>().join("\n");
    let Some(out) = python(folder.path(), &format!("{check}\n{show}")) else { return };
    let expected = [
        "turbo TurboThing ['x', '', 'x']",
        "block INT 128",
        "eps FLOAT 9.999999974752427e-07",
        "form STRING b'sage'",
        "sizes INTS [1, 2, 2]",
        "[('', 20), ('turbo', 1)] 10 turbo-compile",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn every_element_type_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut g = Graph::new("types");
    let one = half::bf16::from_f32(1.5).to_le_bytes().to_vec();
    let constants = [
        (DType::F32, 1.5f32.to_le_bytes().to_vec()),
        (DType::F16, half::f16::from_f32(1.5).to_le_bytes().to_vec()),
        (DType::Bf16, one),
        (DType::F8E4M3, vec![0x3c]),
        (DType::I64, (-3i64).to_le_bytes().to_vec()),
        (DType::I32, (-3i32).to_le_bytes().to_vec()),
        (DType::I8, vec![0xfd]),
        (DType::U8, vec![0xfd]),
        (DType::Bool, vec![1]),
    ];
    for (dtype, bytes) in constants {
        let value = g.constant(dtype, &[1], bytes);
        g.output(dtype.name(), value);
    }
    write(folder.path(), &g.finish().unwrap(), &At(&[]));
    let show = "
for t, o in zip(model.graph.initializer, model.graph.output):
    declared = o.type.tensor_type.elem_type
    print(o.name, onnx.TensorProto.DataType.Name(t.data_type), declared == t.data_type, float(onnx.numpy_helper.to_array(t)[0]))
";
    let Some(out) = python(folder.path(), &format!("{CHECK}{show}")) else { return };
    let expected = [
        "f32 FLOAT True 1.5",
        "f16 FLOAT16 True 1.5",
        "bf16 BFLOAT16 True 1.5",
        "f8e4m3 FLOAT8E4M3FN True 1.5",
        "i64 INT64 True -3.0",
        "i32 INT32 True -3.0",
        "i8 INT8 True -3.0",
        "u8 UINT8 True 253.0",
        "bool BOOL True 1.0",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn weights_are_read_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    // A header, then two weights at offsets that nothing aligns beyond eight bytes, as safetensors does.
    let mut file = vec![0xee; 104];
    let w: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let b = [half::bf16::from_f32(0.5), half::bf16::from_f32(-2.0), half::bf16::from_f32(8.0)];
    file.extend(w.iter().flat_map(|x| x.to_le_bytes()));
    file.extend(b.iter().flat_map(|x| x.to_le_bytes()));
    file.extend([0xee; 10]);
    std::fs::create_dir(folder.path().join("weights")).unwrap();
    std::fs::write(folder.path().join("weights/all.safetensors"), &file).unwrap();
    let mut g = Graph::new("external");
    let x = g.input("x", DType::F32, &[1, 4]);
    let weight = g.weight("w", DType::F32, &[3, 4]);
    let bias = g.weight("b", DType::Bf16, &[3]);
    let bias = g.cast(bias, DType::F32);
    let y = g.gemm(x, weight, Some(bias));
    g.output("y", y);
    write(folder.path(), &g.finish().unwrap(), &At(&[("w", 104, 48), ("b", 152, 6)]));
    let run = "
import numpy, onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
print(session.run(None, {'x': numpy.float32([[1, 0, 0, 2]])})[0].tolist())
loaded = onnx.load('model.onnx')
print([float(onnx.numpy_helper.to_array(t).astype(float).sum()) for t in loaded.graph.initializer])
";
    let Some(out) = python(folder.path(), &format!("{CHECK}{run}")) else { return };
    assert_eq!(out.lines().collect::<Vec<_>>(), ["[[6.5, 16.0, 38.0]]", "[66.0, 6.5]"]);
}
