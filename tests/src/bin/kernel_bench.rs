//! Our CPU kernels against ONNX Runtime's own operators, each as a graph of one op in a session of its own: a table
//! in Markdown. Ratios above 1 are ours being faster. `cargo xtask bench` calls it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use turbo_graph::{Attr, DType, Graph, Value};
use turbo_ops::cases::{Case, Rng};
use turbo_ops::common::quant::{FORMAT, Format};
use turbo_ops::{Attrs, Data, Dims, Op};
use turbo_pipeline::backend::{self, Options, Runtime, Tensor};

/// Runs of each side; the fastest counts.
const RUNS: usize = 5;

fn main() -> Result<()> {
    let runtime = backend::init(None, None)?;
    println!(
        "{}; {} threads; ONNX Runtime {}\n",
        processor(),
        rayon::current_num_threads(),
        runtime.version()
    );
    println!("| ours | ms | ONNX Runtime's | ms | ratio |\n|---|---|---|---|---|");
    linears(&runtime)?;
    attention(&runtime)
}

/// W8A8 linears of Wan 1.3B against a float linear whose weights ONNX Runtime may pack in advance.
fn linears(runtime: &Runtime) -> Result<()> {
    for [m, k, n] in [[1536, 1536, 8960], [1536, 8960, 1536], [1536, 1536, 1536]] {
        let linear = |format: Format| {
            let attrs = quantized(format).choice("activation", "none").choice("dtype", "f32");
            one_op(runtime, &turbo_ops::w8a8_linear::OP, attrs, &Dims::of(&[("m", m), ("n", n), ("k", k)]))
        };
        let (mut ours, mut fp8) = (linear(Format::Int8)?, linear(Format::E4m3)?);
        let dims = Dims::of(&[("m", m), ("k", k)]);
        let mut quantize = one_op(runtime, &turbo_ops::quantize::OP, quantized(Format::Int8), &dims)?;
        let mut rng = Rng::new(1);
        let mut g = Graph::new("linear");
        let x = g.input("x", DType::F32, &[m, k]);
        let w = g.constant_f32(&[k, n], &normal(&mut rng, k * n));
        let y = g.matmul(x, w);
        g.output("y", y);
        let mut theirs =
            Stock::new(runtime, &g.finish()?, vec![("x", Tensor::f32(vec![m, k], normal(&mut rng, m * k)))])?;
        let [ours, quantize, fp8, theirs] = race([&mut ours, &mut quantize, &mut fp8, &mut theirs])?;
        row(&format!("W8A8 linear {m}x{k}x{n}"), ours, "f32 MatMul, packed weights", theirs);
        row("the same and quantisation of its input", ours + quantize, "f32 MatMul, packed weights", theirs);
        row(&format!("FP8 linear {m}x{k}x{n}"), fp8, "f32 MatMul, packed weights", theirs);
    }
    Ok(())
}

fn quantized(format: Format) -> Attrs {
    Attrs::new().choice(FORMAT.name, format.word())
}

/// SageSLA of two heads, block map included, against dense attention over all keys.
fn attention(runtime: &Runtime) -> Result<()> {
    let (l, heads, d) = (8192, 2, 128);
    let dims = |more: &[(&'static str, usize)]| {
        let mut all = vec![("m", l), ("c", heads * d)];
        all.extend(more);
        Dims::of(&all)
    };
    let (block_q, block_k) = (128, 64);
    let key_blocks = l / block_k;
    let keep = key_blocks / 10;
    let whole = || Attrs::new().int("batch", 1).int("heads", heads);
    let sizes = || whole().int("block_q", block_q).int("block_k", block_k);
    let attrs = Attrs::new().int("heads", heads).int("block_q", block_q).int("block_k", block_k);
    let attrs = attrs.int("tokens", l).int("keep", keep);
    let sums = Dims::of(&[("b", 1), ("c", heads * d)]);
    let mut map = one_op(runtime, &turbo_ops::block_map::OP, attrs, &sums)?;
    let mut sparse =
        one_op(runtime, &turbo_ops::sage_sla::OP, sizes().choice("pv", "fp8"), &dims(&[("keep", keep)]))?;
    let attrs = sizes().choice("pv", "fp8");
    let mut sage = one_op(runtime, &turbo_ops::sage_attention::OP, attrs, &dims(&[("n", l)]))?;
    let mut dense = one_op(runtime, &turbo_ops::attention::OP, whole(), &dims(&[("n", l)]))?;
    let mut plain = Stock::attention(runtime, l, heads, d, plain_attention)?;
    let mut fused = Stock::attention(runtime, l, heads, d, fused_attention)?;
    let [map, sparse, sage, dense, plain, fused] =
        race([&mut map, &mut sparse, &mut sage, &mut dense, &mut plain, &mut fused])?;
    let name = format!("SageSLA, top-k 0.1, block map included, L = {l}, {heads} heads of {d}");
    for (theirs, ms) in [("MatMul, Softmax, MatMul", plain), ("MultiHeadAttention (fused)", fused)] {
        row(&name, map + sparse, theirs, ms);
        row("dense SageAttention", sage, theirs, ms);
        row("dense attention", dense, theirs, ms);
    }
    Ok(())
}

fn plain_attention(g: &mut Graph, qkv: [Value; 3], heads: usize) -> Value {
    let [q, k, v] = qkv.map(|x| {
        let [b, l, c] = [0, 1, 2].map(|i| g.dim(x, i));
        let x = g.reshape(x, &[b, l, heads, c / heads]);
        g.transpose(x, &[0, 2, 1, 3])
    });
    let d = g.dim(q, 3);
    let k = g.transpose(k, &[0, 1, 3, 2]);
    let q = g.mul_scalar(q, 1.0 / (d as f64).sqrt());
    let p = g.matmul(q, k);
    let p = g.softmax(p, 3);
    g.matmul(p, v)
}

/// ONNX Runtime's contributed operator, which on CPUs is a FlashAttention.
fn fused_attention(g: &mut Graph, qkv: [Value; 3], heads: usize) -> Value {
    let shape = g.shape(qkv[0]).to_vec();
    let attrs = vec![("num_heads".to_string(), Attr::Int(heads as i64))];
    g.node("com.microsoft", "MultiHeadAttention", &qkv.map(Some), attrs, &[(DType::F32, shape)])[0]
}

fn row(ours: &str, our_ms: f64, theirs: &str, their_ms: f64) {
    println!("| {ours} | {our_ms:.1} | {theirs} | {their_ms:.1} | {:.2} |", their_ms / our_ms);
}

/// Something to time.
trait Contender {
    fn run(&mut self) -> Result<()>;
}

/// The fastest run of each, in milliseconds. They do not take turns: ONNX Runtime's threads go on spinning for a
/// while after a run, which would slow the next one down.
fn race<const N: usize>(contenders: [&mut dyn Contender; N]) -> Result<[f64; N]> {
    let mut best = [f64::INFINITY; N];
    for (contender, best) in contenders.into_iter().zip(&mut best) {
        std::thread::sleep(Duration::from_millis(200));
        for _ in 0..=RUNS {
            let start = Instant::now();
            contender.run()?;
            *best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(best)
}

/// One of our ops in a session as turbo-run makes it.
struct Ours {
    session: backend::Session,
    inputs: Vec<(&'static str, Tensor)>,
}

fn one_op(runtime: &Runtime, op: &'static Op, attrs: Attrs, dims: &Dims) -> Result<Ours> {
    let case = Case { name: "bench".to_string(), attrs, dims: dims.clone(), seed: 1, tol: Vec::new() };
    let mut g = Graph::new(op.name);
    let mut inputs = Vec::new();
    let mut values = Vec::new();
    for (def, tensor) in op.inputs.iter().zip((op.sample)(&case)) {
        let shape = tensor.shape.clone();
        let (dtype, tensor) = match tensor.for_kernel().data {
            Data::F32(data) => (DType::F32, Tensor::f32(shape, data)),
            Data::I8(data) => (DType::I8, Tensor::i8(shape, data)),
            Data::I32(data) => (DType::I32, Tensor::i32(shape, data)),
            Data::F64(_) => anyhow::bail!("kernels take no f64"),
        };
        values.push(g.input(def.name, dtype, &tensor.shape));
        inputs.push((def.name, tensor));
    }
    for (def, value) in op.outputs.iter().zip(op.node(&mut g, &case.attrs, &values)) {
        g.output(&format!("{}_out", def.name), value);
    }
    let graph = turbo_onnx::encode_with_weight_inputs(&g.finish()?)?;
    let options = Options { stage: op.name, graph: &graph, weights: Vec::new(), cancelled: Arc::default() };
    Ok(Ours { session: backend::Session::load(runtime, options)?, inputs })
}

impl Contender for Ours {
    fn run(&mut self) -> Result<()> {
        let inputs: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        self.session.run(&inputs)?;
        Ok(())
    }
}

/// A graph in a session with ONNX Runtime's own defaults.
struct Stock {
    session: Session,
    inputs: Vec<(&'static str, Tensor)>,
}

impl Stock {
    fn new(runtime: &Runtime, graph: &Graph, inputs: Vec<(&'static str, Tensor)>) -> Result<Stock> {
        let bytes = turbo_onnx::encode_with_weight_inputs(graph)?;
        let stage = |e: &dyn std::fmt::Display| anyhow::anyhow!("{e}");
        let session = Session::builder(runtime.environment())
            .map_err(|e| stage(&e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| stage(&e))?
            .with_intra_threads(rayon::current_num_threads())
            .map_err(|e| stage(&e))?
            .commit_from_memory(&bytes)
            .map_err(|e| stage(&e))?;
        Ok(Stock { session, inputs })
    }

    fn attention(
        runtime: &Runtime,
        l: usize,
        heads: usize,
        d: usize,
        form: fn(&mut Graph, [Value; 3], usize) -> Value,
    ) -> Result<Stock> {
        let mut g = Graph::new("attention");
        let shape = [1, l, heads * d];
        let mut rng = Rng::new(2);
        let names = ["q", "k", "v"];
        let values = names.map(|name| g.input(name, DType::F32, &shape));
        let o = form(&mut g, values, heads);
        g.output("o", o);
        let inputs = names.map(|name| (name, Tensor::f32(shape.to_vec(), normal(&mut rng, l * heads * d))));
        Stock::new(runtime, &g.finish()?, inputs.into())
    }
}

impl Contender for Stock {
    fn run(&mut self) -> Result<()> {
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in &self.inputs {
            let value = ort::value::TensorRef::from_array_view((tensor.shape.clone(), tensor.as_f32()))?;
            values.push((name, value.into()));
        }
        self.session.run(values)?;
        Ok(())
    }
}

fn normal(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// The processor's name and what matters here of its instruction sets.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(": "))
            .map(|(_, v)| v)
    };
    let flags: Vec<&str> = field("flags").unwrap_or_default().split(' ').collect();
    let known = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"];
    let sets: Vec<&str> = known.into_iter().filter(|set| flags.contains(set)).collect();
    format!("{} ({})", field("model name").unwrap_or("unknown processor"), sets.join(", "))
}
