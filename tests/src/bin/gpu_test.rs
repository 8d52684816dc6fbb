//! The tests that need a GPU, as one program: `gpu_test --tensorrt DIR [--golden DIR] [--demo ENGINE...]`.
//!
//! Prints a table and writes a JSON report. It needs the files under `target/`, a folder with TensorRT's libraries and
//! the golden vectors; no network, no compilers.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use turbo_compile::stages::weight_forms;
use turbo_graph::{DType, Graph};
use turbo_models::Params;
use turbo_models::dit::{self, Attention, Config, LatentSize, Linear, Recipe, Tiling};
use turbo_ops::cases::rel_l2;
use turbo_ops::{Op, Tensor, Ty};
use turbo_tests::gpu::{ACTIVATION, Gpu, Values};
use turbo_tests::vectors::{Compiled, Vectors};

/// One line of the report.
#[derive(Serialize)]
struct Row {
    group: String,
    case: String,
    /// What was measured, and the most that is allowed of it.
    found: f64,
    bound: f64,
    seconds: f64,
    /// Empty when the case passed.
    problem: String,
}

#[derive(Serialize)]
struct Report {
    gpu: String,
    compute_capability: (i32, i32),
    tensorrt: String,
    cuda_driver: Option<(i32, i32)>,
    version: &'static str,
    rows: Vec<Row>,
}

impl Report {
    /// Runs a case, which gives its measured value, and notes how it went.
    fn case(&mut self, group: &str, case: &str, bound: f64, run: impl FnOnce() -> Result<f64>) {
        let start = Instant::now();
        let (found, problem) = match run() {
            Ok(found) if found <= bound => (found, String::new()),
            Ok(found) => (found, "too far".to_string()),
            Err(error) => (f64::NAN, format!("{error:#}")),
        };
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if problem.is_empty() { "ok" } else { "FAILED" };
        println!("{group:<12} {case:<44} {found:>10.2e} of {bound:<8.0e} {seconds:>7.2} s  {verdict}");
        for line in problem.lines().filter(|_| problem != "too far") {
            println!("    {line}");
        }
        self.rows.push(Row { group: group.into(), case: case.into(), found, bound, seconds, problem });
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut tensorrt, mut libraries, mut golden, mut json) = (None, None, None, None);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().map(PathBuf::from).with_context(|| format!("{flag} needs a path"))?;
        match flag.as_str() {
            "--tensorrt" => tensorrt = Some(value),
            "--gpu-libraries" => libraries = Some(value),
            "--golden" => golden = Some(value),
            "--json" => json = Some(value),
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    let gpu = Gpu::open(libraries.as_deref(), tensorrt.as_deref())?;
    let found = gpu.device.gpu();
    let mut report = Report {
        gpu: found.name.clone(),
        compute_capability: found.compute_capability,
        tensorrt: gpu.device.library().version().to_string(),
        cuda_driver: gpu.device.library().shim().driver_version()?,
        version: env!("CARGO_PKG_VERSION"),
        rows: Vec::new(),
    };
    println!("{}, TensorRT {}, driver for CUDA {:?}", report.gpu, report.tensorrt, report.cuda_driver);
    for op in turbo_ops::ALL {
        one_op_engine(&gpu, &mut report, op);
    }
    if let Some(golden) = golden {
        golden_dit(&gpu, &mut report, &golden)?;
    }
    let failed = report.rows.iter().filter(|row| !row.problem.is_empty()).count();
    println!("{} passed, {failed} failed", report.rows.len() - failed);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    std::process::exit(i32::from(failed > 0));
}

/// Each op as an engine of one node: its largest case, in bf16, against its reference.
fn one_op_engine(gpu: &Gpu, report: &mut Report, op: &Op) {
    let cases = (op.cases)();
    let Some(case) = cases.iter().max_by_key(|case| {
        op.inputs.iter().map(|def| size(def, case).iter().product::<usize>()).sum::<usize>()
    }) else {
        return;
    };
    // As the kernels' own tests: the case's tolerance, and the rounding of values and outputs to bf16.
    report.case("one op", &format!("{} {}", op.name, case.name), 1.5e-2, || {
        let mut g = Graph::new("op");
        let dtype = |ty| match ty {
            Ty::T => ACTIVATION,
            Ty::F32 => DType::F32,
            Ty::I8 => DType::I8,
            Ty::I32 => DType::I32,
        };
        let inputs: Vec<_> =
            op.inputs.iter().map(|def| g.input(def.name, dtype(def.ty), &size(def, case))).collect();
        let attrs = match case.attrs.get("dtype") {
            Some(_) => case.attrs.clone().choice("dtype", "bf16"),
            None => case.attrs.clone(),
        };
        let outputs = turbo_ops::emit(&mut g, op.name, attrs, &inputs);
        for (def, value) in op.outputs.iter().zip(outputs) {
            g.output(def.name, value);
        }
        let tensors = (op.sample)(case);
        let expected: Vec<Tensor> = (op.reference)(&case.attrs, &tensors);
        let values: Vec<Vec<f32>> =
            tensors.iter().map(|t| t.to_f64().into_iter().map(|v| v as f32).collect()).collect();
        let fed: Vec<(&str, &[f32])> =
            op.inputs.iter().map(|def| def.name).zip(values.iter().map(Vec::as_slice)).collect();
        let found = gpu.engine(&g.finish()?, &[])?.run(&fed)?;
        let worst = op.outputs.iter().zip(&expected).map(|(def, expected)| distance(&found[def.name], expected));
        Ok(worst.fold(0.0, f64::max))
    });
}

fn size(def: &turbo_ops::TensorDef, case: &turbo_ops::Case) -> Vec<usize> {
    def.dims.iter().map(|dim| dim.eval(&case.attrs, &case.dims).unwrap_or(0)).collect()
}

fn distance(found: &[f32], expected: &Tensor) -> f64 {
    rel_l2(&wide(found), &expected.to_f64())
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The reference's own GPU kernels: every mode through real engines.
fn golden_dit(gpu: &Gpu, report: &mut Report, folder: &std::path::Path) -> Result<()> {
    let v = Vectors::open(&folder.join("dit.safetensors"));
    let modes = ["original", "sla", "sagesla", "sagesla_w8a8"];
    for mode in modes {
        let (attention, block_q, block_k) = match mode {
            "original" => (Attention::Dense, 128, 64),
            "sla" => (Attention::Sla, 128, 64),
            _ => (Attention::SageSla, 64, 128),
        };
        let (linear, file) = match mode {
            "sagesla_w8a8" => (Linear::W8a8, "ckpt_quant.safetensors"),
            _ => (Linear::Bf16, "ckpt.safetensors"),
        };
        let topk = v.0.metadata().get("topk").or(v.0.metadata().get("sla_topk"));
        let topk = topk.and_then(|t| t.parse().ok()).unwrap_or(0.25);
        let tiling = Tiling { block_q, block_k };
        let recipe = Recipe { attention, topk, tiling, linear, ..Recipe::default() };
        let (x, context) = (v.f32("x"), v.f32("context"));
        let run = || -> Result<Vec<(String, Values)>> {
            let mut dit = Compiled::open(&folder.join(file), linear);
            let config = Config::read(dit.network, None)?;
            let params = |dit: &Compiled| -> Result<(Graph, Graph)> {
                let params = Params::converted(&dit.stored, ACTIVATION);
                let size = LatentSize { frames: x.shape[2], height: x.shape[3], width: x.shape[4] };
                let text = dit::context(&config, &recipe, params, 1)?;
                Ok((text, dit::denoiser(&config, &recipe, params, 1, size)?))
            };
            let (text, mut step) = params(&dit)?;
            dit.stored.convert(&weight_forms([&text, &step].into_iter()));
            let weights = dit.converted();
            for block in [0, 1] {
                if let Some(value) = step.find(&format!("blocks.{block}")) {
                    let wide = step.cast(value, DType::F32);
                    step.output(&format!("block{block}"), wide);
                }
            }
            let side = gpu.engine(&text, &weights)?.run(&[("text_emb", context.as_f32())])?;
            let mut engine = gpu.engine(&step, &weights)?;
            let mut found = Vec::new();
            for t in ["999.0", "700.0"] {
                if v.get(&format!("{mode}.t{t}.velocity")).is_none() {
                    continue;
                }
                let step = half::bf16::from_f32(t.parse()?).to_f32();
                let time = turbo_sampler::time_embedding(step, config.freq_dim);
                let mut inputs: Vec<(&str, &[f32])> = vec![("x", x.as_f32()), ("time", &time)];
                inputs.extend(side.iter().map(|(name, values)| (name.as_str(), values.as_slice())));
                found.push((t.to_string(), engine.run(&inputs)?));
            }
            Ok(found)
        };
        let found = match run() {
            Ok(found) => found,
            Err(error) => {
                report.case("golden dit", mode, 0.0, || Err(error));
                continue;
            }
        };
        for (t, values) in &found {
            for block in [0, 1] {
                let Some(expected) = v.get(&format!("{mode}.t{t}.block{block}")) else { continue };
                report.case("golden dit", &format!("{mode} t {t} block {block}"), 2e-2, || {
                    Ok(rel_l2(&wide(&values[&format!("block{block}")]), &wide(expected.as_f32())))
                });
            }
            let far = |other: &str| {
                let other = v.get(&format!("{other}.t{t}.velocity"))?;
                Some(rel_l2(&wide(&values["velocity"]), &wide(other.as_f32())))
            };
            let own = far(mode).unwrap_or(f64::NAN);
            report.case("golden dit", &format!("{mode} t {t} velocity"), 4e-2, || Ok(own));
            for other in modes.iter().filter(|other| **other != mode) {
                if let Some(distance) = far(other) {
                    let case = format!("{mode} t {t}, share of the distance to {other}");
                    report.case("golden dit", &case, 1.0, || Ok(own / distance));
                }
            }
        }
    }
    Ok(())
}
