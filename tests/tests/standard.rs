//! The standard flavor in stock Python: valid ONNX, no custom op left, and the results of the custom ops.
//!
//! Needs an interpreter that has `numpy`, `onnx` and `onnxruntime`, named by `TURBO_PYTHON`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use turbo_compile::choices::Flavor;
use turbo_compile::{Choices, NoProgress, compile};
use turbo_engine_file::{EngineFile, Stage};
use turbo_models::dit::{Attention, Linear, PvType, Tiling};
use turbo_ops::cases::Rng;
use turbo_pipeline::backend::{Options, Runtime, Session, Tensor};
use turbo_tests::demo;
use turbo_tests::vectors::{Family, file, runtime};

/// Compiles into `folder`: the engine file and, in `onnx`, the graphs and weights.
fn emit(choices: &Choices, flavor: Flavor, folder: &Path) -> EngineFile {
    std::fs::create_dir_all(folder).unwrap();
    let output = folder.join("engine.plan");
    let choices = Choices {
        flavor: Some(flavor),
        output: Some(output.clone()),
        emit_onnx: Some(folder.join("onnx")),
        ..choices.clone()
    };
    compile(&choices, &mut NoProgress).unwrap();
    EngineFile::open(&output).unwrap()
}

/// A stage as turbo-run loads it.
fn session(runtime: &Runtime, engine: &EngineFile, stage: &Stage) -> Session {
    let weight = |path: &String| {
        let bytes = engine.bytes(path).unwrap().to_vec();
        (path.clone(), Arc::new(bytes) as turbo_pipeline::backend::Bytes)
    };
    let options = Options {
        stage: &stage.name,
        graph: engine.bytes(&stage.graph).unwrap(),
        weights: stage.weights.iter().map(weight).collect(),
        cancelled: Arc::default(),
    };
    Session::load(runtime, options).unwrap()
}

/// Seeded elements for an input, also written to a file: a prompt's tokens, or normal deviates.
fn input(name: &str, shape: Vec<usize>, rng: &mut Rng, folder: &Path) -> Tensor {
    const TOKENS: usize = 23;
    let count = shape.iter().product();
    let (tensor, bytes): (Tensor, Vec<u8>) = if name == "ids" {
        let mut ids: Vec<i64> = (0..count).map(|_| (rng.bits() % 300) as i64).collect();
        ids[TOKENS..].fill(0);
        let bytes = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
        (Tensor::i64(shape, ids), bytes)
    } else {
        let mut values: Vec<f32> = (0..count).map(|_| rng.normal() as f32).collect();
        if name == "mask" {
            values.fill(0.0);
            values[..TOKENS].fill(1.0);
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (Tensor::f32(shape, values), bytes)
    };
    std::fs::write(folder.join(format!("{name}.in")), bytes).unwrap();
    tensor
}

type Outputs = BTreeMap<String, Vec<f32>>;

/// Every stage of the custom flavor on random inputs, which are left in `runs` for the other flavor.
fn run_custom(runtime: &Runtime, engine: &EngineFile, runs: &Path) -> BTreeMap<String, Outputs> {
    let mut rng = Rng::new(20);
    let mut all = BTreeMap::new();
    for stage in &engine.manifest().stages {
        let folder = runs.join(&stage.name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut session = session(runtime, engine, stage);
        let names: Vec<String> = session.input_names().map(str::to_string).collect();
        let inputs: Vec<Tensor> =
            names.iter().map(|n| input(n, session.input_shape(n), &mut rng, &folder)).collect();
        let inputs: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&inputs).collect();
        let outputs = session.run(&inputs).unwrap();
        let outputs = outputs.into_iter().map(|(name, tensor)| (name, tensor.as_f32().to_vec())).collect();
        all.insert(stage.name.clone(), outputs);
    }
    all
}

/// `TURBO_PYTHON`; `None` where it is not set.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("TURBO_PYTHON").filter(|v| !v.is_empty());
    if python.is_none() {
        println!("skipped: TURBO_PYTHON is not set");
    }
    python.map(PathBuf::from)
}

/// Compiles in both flavors, checks both and compares what they compute. `transformer` bounds the difference of
/// the stages that work in low precision, where a value next to a rounding boundary goes either way.
fn check(name: &str, choices: &Choices, transformer: f64) -> Option<String> {
    let (python, runtime) = (python()?, runtime()?);
    let folder = tempfile::tempdir().unwrap();
    let (standard, custom) = (folder.path().join("standard"), folder.path().join("custom"));
    emit(choices, Flavor::Standard, &standard);
    let engine = emit(choices, Flavor::Custom, &custom);
    let runs = folder.path().join("runs");
    let expected = run_custom(&runtime, &engine, &runs);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/standard.py");
    let mut command = Command::new(&python);
    command.arg(script).args([standard.join("onnx"), custom.join("onnx"), runs.clone()]);
    let said = command.output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}{error}");
    print!("{out}");

    let mut family = Family::new(name);
    let stages: BTreeSet<&str> = out.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    family.holds("every stage is emitted", stages.iter().eq(expected.keys()));
    let plain = |line: &str| line.starts_with("dit") && line.contains(": 0 custom nodes");
    family.holds("the transformer has custom ops to compare with", !out.lines().any(plain));
    for (stage, outputs) in &expected {
        let bound = if stage.starts_with("dit") { transformer } else { 1e-4 };
        family.holds(&format!("{stage} has outputs"), !outputs.is_empty());
        for (output, expected) in outputs {
            let bytes = std::fs::read(runs.join(stage).join(format!("{output}.out"))).unwrap();
            let found: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            let case = format!("{stage} {output}");
            family.holds(&format!("{case} is not all zeros"), expected.iter().any(|&v| v != 0.0));
            family.rel(&case, &found, expected, bound);
        }
    }
    Some(out.into_owned())
}

/// 208 tokens: two blocks of queries, four of keys of which one is kept, the last of each not full.
fn small_demo() -> Choices {
    Choices {
        model: Some(demo::folder()),
        size: vec!["64x64".parse().unwrap()],
        frames: vec![49],
        ..Choices::default()
    }
}

#[test]
fn the_standard_flavor_runs_in_stock_python() {
    let Some(said) = check("standard flavor", &small_demo(), 2e-2) else { return };
    // 8 blocks of 10 linears, those of k and v of the text in the stage that runs once per prompt.
    let int8 = |stage: &str, count: usize| {
        let line = said.lines().find(|line| line.starts_with(&format!("{stage}:"))).unwrap();
        assert!(line.ends_with(&format!(" {count} INT8 weights")), "{line}");
    };
    int8("dit", 64);
    int8("dit_context", 16);
    int8("vae_decoder", 0);
}

#[test]
fn other_recipes_run_in_stock_python() {
    let tiling = Some(Tiling { block_q: 64, block_k: 128 });
    let recipes = [
        // Nothing is rounded to low precision, so the two flavors differ by the order of sums alone.
        (Attention::Dense, Linear::Bf16, None, PvType::Fp8, 1e-4),
        (Attention::Sla, Linear::Bf16, None, PvType::Fp8, 1e-4),
        (Attention::Sage, Linear::Bf16, tiling, PvType::F16, 2e-2),
        (Attention::SageSla, Linear::W8a8, tiling, PvType::F16, 2e-2),
        (Attention::Dense, Linear::Fp8, None, PvType::Fp8, 2e-2),
    ];
    for (attention, linear, tiling, pv, bound) in recipes {
        let choices = Choices {
            attention: Some(attention),
            linear: Some(linear),
            pv: Some(pv),
            topk: Some(0.5),
            tiling,
            ..small_demo()
        };
        let name = format!("standard flavor, {attention:?} {linear:?}");
        if check(&name, &choices, bound).is_none() {
            return;
        }
    }
}

#[test]
fn both_experts_and_the_encoder_run_in_stock_python() {
    let files = ["dit_i2v_high_ckpt", "dit_i2v_low_ckpt", "umt5_ckpt", "vae_ckpt"];
    let files: Vec<PathBuf> = files.iter().filter_map(|f| file(&format!("{f}.safetensors"))).collect();
    let ([high, low, text, vae], Some(tokenizer)) = (&files[..], file("tokenizer/tokenizer.json")) else {
        return;
    };
    let choices = Choices {
        high_noise: Some(high.clone()),
        low_noise: Some(low.clone()),
        text_encoder: Some(text.clone()),
        vae: Some(vae.clone()),
        tokenizer: Some(tokenizer),
        size: vec!["64x64".parse().unwrap()],
        frames: vec![5],
        ..Choices::default()
    };
    check("standard flavor, image to video", &choices, 2e-2);
}
