//! Weights stay where they are mapped: the process's own memory does not grow with them.
//!
//! Reads Linux's account of the process; elsewhere, and without ONNX Runtime, the tests say that they are skipped.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use turbo_graph::{DType, Graph, Value};
use turbo_onnx::encode_with_weight_inputs;
use turbo_pipeline::backend::{self, BackendError, Bytes, Options, Session, Tensor};

const MIB: u64 = 1 << 20;
/// Side of each square weight.
const N: usize = 4096;
/// Rows of activations.
const ROWS: usize = 4;

/// The figures are those of the whole process, so that one test measures at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes that `/proc/self/status` gives for a name.
fn status(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Own memory (not backed by a file) at most held while `work` runs.
fn peak<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(status("RssAnon:").unwrap(), Ordering::Relaxed);
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    (result, most.load(Ordering::Relaxed))
}

/// A mapped safetensors file of zeros that takes no room on disk.
fn weights(tensors: &[(String, &str, Vec<usize>, usize)]) -> Bytes {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, dtype, shape, bytes)| {
        end += bytes;
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{end}]}}"#, end - bytes)
    });
    let mut header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    while !header.len().is_multiple_of(64) {
        header.push(' ');
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    // SAFETY: nobody else has the temporary file, so it does not change while it is mapped.
    Arc::new(unsafe { memmap2::Mmap::map(&file) }.unwrap())
}

/// Loads and twice runs a graph with an input `x`, and checks that of 512 MiB of weights at most `room` become the
/// process's own memory at any time.
fn stays_mapped(name: &str, graph: Graph, weights: Bytes, room: u64) {
    let _alone = ALONE.lock().unwrap();
    let size = (*weights).as_ref().len() as u64;
    assert!(size >= 512 * MIB);
    let graph = encode_with_weight_inputs(&graph.finish().unwrap()).unwrap();
    let runtime = match backend::init(None, None) {
        Ok(runtime) => runtime,
        Err(BackendError::NotFound { .. }) if std::env::var_os("TURBO_REQUIRE_ORT").is_none() => {
            return println!("skipped: no ONNX Runtime here");
        }
        Err(error) => panic!("{error}"),
    };
    let (Some(own), Some(file)) = (status("RssAnon:"), status("RssFile:")) else {
        return println!("skipped: this system does not tell");
    };
    let weights = vec![("weights".to_string(), weights)];
    let options = Options { stage: name, graph: &graph, weights, cancelled: Arc::default() };
    let (session, load) = peak(|| Session::load(&runtime, options));
    let mut session = session.unwrap();
    let x = Tensor::f32(vec![ROWS, N], vec![0.5; ROWS * N]);
    for run in ["first", "second"] {
        let (result, most) = peak(|| session.run(&[("x", &x)]).map(drop));
        result.unwrap();
        let grown = most.saturating_sub(own);
        println!("{name}: own memory grew by {} MiB at most in the {run} run", grown / MIB);
        assert!(grown < room, "{grown} bytes of own memory in the {run} run, at most {room} expected");
    }
    assert!(load.saturating_sub(own) < 16 * MIB, "loading took {} bytes", load - own);
    let read = status("RssFile:").unwrap().saturating_sub(file);
    assert!(read >= size, "only {read} bytes of {size} were read where they are mapped");
    drop(session);
    let left = status("RssAnon:").unwrap().saturating_sub(own);
    // The allocator keeps some of what was freed.
    assert!(left < 32 * MIB, "{left} bytes of own memory are left");
    assert!(status("RssFile:").unwrap().saturating_sub(file) < 64 * MIB, "the weights are still mapped");
}

#[test]
fn int8_weights_of_our_ops_stay_mapped() {
    let mut g = Graph::new("int8");
    let mut x = g.input("x", DType::F32, &[ROWS, N]);
    let mut tensors = Vec::new();
    let blocks = N / 128;
    for layer in 0..32 {
        let (w, ws) = (format!("{layer}.w"), format!("{layer}.ws"));
        let operands = [
            g.weight(&w, DType::I8, &[N, N]),
            g.weight(&ws, DType::F32, &[blocks, blocks]),
            g.constant_f32(&[N], &[0.0; N]),
        ];
        tensors.push((w, "I8", vec![N, N], N * N));
        tensors.push((ws, "F32", vec![blocks, blocks], 4 * blocks * blocks));
        let int8 = turbo_ops::Attrs::new().choice("format", "int8");
        let quantized = turbo_ops::emit(&mut g, "TurboQuantize", int8.clone(), &[x]);
        let inputs: Vec<Value> = quantized.into_iter().chain(operands).collect();
        let attrs = int8.choice("activation", "none").choice("dtype", "f32");
        x = turbo_ops::emit(&mut g, "TurboW8A8Linear", attrs, &inputs)[0];
    }
    g.output("y", x);
    // What a kernel needs for itself, and ONNX Runtime's nodes and messages.
    stays_mapped("int8", g, weights(&tensors), 48 * MIB);
}

#[test]
fn bf16_weights_are_widened_one_at_a_time() {
    let mut g = Graph::new("bf16");
    let mut x = g.input("x", DType::F32, &[ROWS, N]);
    let mut tensors = Vec::new();
    for layer in 0..16 {
        let w = format!("{layer}.w");
        let stored = g.weight(&w, DType::Bf16, &[N, N]);
        tensors.push((w, "BF16", vec![N, N], 2 * N * N));
        let wide = g.cast(stored, DType::F32);
        let y = g.gemm(x, wide, None);
        // A residual and a second reader of it, as in a transformer's block.
        let scaled = g.silu(y);
        x = g.add(x, scaled);
    }
    g.output("y", x);
    // One weight in f32, another that the arena keeps, and a little more; all sixteen would take eight times that.
    stays_mapped("bf16", g, weights(&tensors), (8 * N * N) as u64 + 48 * MIB);
}
