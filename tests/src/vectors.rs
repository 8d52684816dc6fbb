//! The vectors from the reference code, and the networks that turbo-compile emits run against them.
//!
//! `TURBO_GOLDEN` and `TURBO_GOLDEN_GPU` name folders with the full sets; without them a small subset under
//! `tests/golden` is used, and what is not in it is skipped with a printed line.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use turbo_checkpoint::Checkpoint;
use turbo_compile::network::Network;
use turbo_compile::stored::Stored;
use turbo_graph::Graph;
use turbo_models::dit::Linear;
use turbo_ops::cases::rel_l2;
use turbo_pipeline::backend::{self, Options, Runtime, Session, Tensor};

/// The folder of a set, and whether it was named.
fn folder(variable: &str, default: &str) -> (PathBuf, bool) {
    match std::env::var_os(variable).filter(|v| !v.is_empty()) {
        Some(path) => (path.into(), true),
        None => (Path::new(env!("CARGO_MANIFEST_DIR")).join(default), false),
    }
}

/// Path of a golden file; `None` where it is not in the small subset.
///
/// # Panics
/// When the folder was named and the file is not there.
pub fn file(name: &str) -> Option<PathBuf> {
    find("TURBO_GOLDEN", "golden", name)
}

/// As [`file`], of the vectors from the reference's own GPU kernels.
pub fn gpu_file(name: &str) -> Option<PathBuf> {
    find("TURBO_GOLDEN_GPU", "golden/gpu", name)
}

fn find(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let (folder, named) = folder(variable, default);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(!named, "{} is missing", path.display());
    println!("skipped: {name} is not in the small subset");
    None
}

/// The tensors of a golden file.
pub struct Vectors(pub Checkpoint);

impl Vectors {
    /// Opens a file.
    pub fn open(path: &Path) -> Vectors {
        Vectors(Checkpoint::open(path).expect("a golden file"))
    }

    /// A float tensor, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let view = self.0.get(name)?;
        Some(Tensor::f32(view.shape.to_vec(), view.to_f32().expect("a float tensor")))
    }

    /// A float tensor.
    pub fn f32(&self, name: &str) -> Tensor {
        self.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// An integer tensor of any width.
    pub fn i64(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        let view = self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        let bytes = view.bytes();
        let values = match view.dtype {
            turbo_checkpoint::DType::I64 => {
                bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
            }
            turbo_checkpoint::DType::I32 => {
                bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect()
            }
            turbo_checkpoint::DType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            _ => bytes.iter().map(|&b| i64::from(b)).collect(),
        };
        (view.shape.to_vec(), values)
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.0.tensors().map(|t| t.name.to_string()).collect()
    }
}

/// ONNX Runtime; `None` where it is not there and need not be.
pub fn runtime() -> Option<Runtime> {
    match backend::init(None, None) {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            assert!(std::env::var_os("TURBO_REQUIRE_ORT").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// A checkpoint as turbo-compile takes it in, with the weights it would store.
pub struct Compiled {
    /// The recognised network.
    pub network: &'static Network,
    /// Its stored weights.
    pub stored: Stored<'static>,
    weights: Arc<Vec<u8>>,
}

impl Compiled {
    /// Opens, recognises and stores a checkpoint; the file of weights is kept in memory.
    pub fn open(path: &Path, linear: Linear) -> Compiled {
        let network =
            Network::identify(path, Checkpoint::open(path).expect("a checkpoint")).expect("a network");
        let network: &'static Network = Box::leak(Box::new(network));
        let stored = Stored::plan(network, linear).expect("stored weights");
        let mut weights = Vec::new();
        stored.write(&stored.layout(), &mut weights, &mut |_| Ok(())).expect("weights in memory");
        Compiled { network, stored, weights: Arc::new(weights) }
    }

    /// The weights as they are stored now, after a conversion of [`Compiled::stored`].
    pub fn converted(&self) -> Vec<u8> {
        let mut weights = Vec::new();
        self.stored.write(&self.stored.layout(), &mut weights, &mut |_| Ok(())).expect("weights in memory");
        weights
    }

    /// Loads a graph over the weights, with inner values as further outputs.
    pub fn load(&self, runtime: &Runtime, mut graph: Graph, taps: &[&str]) -> Session {
        for tap in taps {
            let value = graph.find(tap).unwrap_or_else(|| panic!("no value {tap} in {graph}"));
            graph.output(&format!("tap.{tap}"), value);
        }
        let onnx = turbo_onnx::encode_with_weight_inputs(&graph).expect("an ONNX file");
        let bytes: backend::Bytes = Arc::new(Held(self.weights.clone()));
        let options = Options {
            stage: &graph.name,
            graph: &onnx,
            weights: vec![("weights".to_string(), bytes)],
            cancelled: Arc::default(),
        };
        Session::load(runtime, options).expect("a session")
    }
}

struct Held(Arc<Vec<u8>>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Outputs by name.
pub type Outputs = BTreeMap<String, Vec<f32>>;

/// Runs a session; inner values lose their prefix.
pub fn run(session: &mut Session, inputs: &[(&str, &Tensor)]) -> Outputs {
    let outputs = session.run(inputs).expect("a run");
    let name = |name: &str| name.strip_prefix("tap.").unwrap_or(name).to_string();
    outputs.iter().map(|(n, tensor)| (name(n), tensor.as_f32().to_vec())).collect()
}

/// Collects errors of one family against its tolerance; prints a line at the end and appends a row of a table to
/// the file that `TURBO_GOLDEN_SUMMARY` names.
pub struct Family {
    name: String,
    cases: usize,
    worst: (f64, f64, String),
    failures: Vec<String>,
}

impl Family {
    /// A family of cases.
    pub fn new(name: &str) -> Self {
        Family { name: name.to_string(), cases: 0, worst: (0.0, 1.0, String::new()), failures: Vec::new() }
    }

    /// Compares by relative L2 distance.
    pub fn rel(&mut self, case: &str, found: &[f32], expected: &[f32], bound: f64) -> f64 {
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let error =
            if found.len() == expected.len() { rel_l2(&wide(found), &wide(expected)) } else { f64::NAN };
        self.value(case, error, bound);
        error
    }

    /// Records a figure that must be at most `bound`; NaN fails.
    pub fn value(&mut self, case: &str, error: f64, bound: f64) {
        self.cases += 1;
        if error.is_nan() || error > bound {
            self.failures.push(format!("{case}: {error:.3e} exceeds {bound:.1e}"));
        }
        if error / bound > self.worst.0 / self.worst.1 {
            self.worst = (error, bound, case.to_string());
        }
    }

    /// Records a statement that must be true.
    pub fn holds(&mut self, case: &str, truth: bool) {
        self.cases += 1;
        if !truth {
            self.failures.push(format!("{case} does not hold"));
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let (error, bound, case) = &self.worst;
        println!("golden {}: {} cases, worst {error:.2e} of {bound:.0e} ({case})", self.name, self.cases);
        if let Some(path) = std::env::var_os("TURBO_GOLDEN_SUMMARY") {
            let line = format!("| {} | {} | {error:.1e} | {bound:.0e} | {case} |\n", self.name, self.cases);
            let file = std::fs::File::options().append(true).create(true).open(path);
            // One write a line: suites run side by side.
            file.and_then(|mut file| file.write_all(line.as_bytes())).expect("a summary");
        }
        if !std::thread::panicking() {
            assert!(self.failures.is_empty(), "golden {}:\n  {}", self.name, self.failures.join("\n  "));
            assert!(self.cases > 0, "golden {}: no case", self.name);
        }
    }
}
