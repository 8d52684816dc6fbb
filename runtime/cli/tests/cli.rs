//! Whole runs of turbo-run on the demo's engine file: what it makes, and what it says of bad input.
//!
//! Runs that need ONNX Runtime are skipped with a printed line where its library is not found, unless
//! `TURBO_REQUIRE_ORT` is set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use turbo_compile::{Choices, NoProgress, compile};

const PROMPT: &str = "A small red circle moves from left to right slowly on a black background.";

/// The demo's engine file, compiled once.
fn engine() -> &'static Path {
    static ENGINE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = ENGINE.get_or_init(|| compiled(Choices::default()));
    path
}

/// The demo as an engine file, and the folder that it lies in.
fn compiled(choices: Choices) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.plan");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let choices = Choices { model: Some(model), output: Some(path.clone()), ..choices };
    compile(&choices, &mut NoProgress).unwrap();
    (folder, path)
}

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_turbo-run"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs with arguments; `None` when ONNX Runtime is not there and need not be.
fn run(arguments: &[&str]) -> Option<Output> {
    let output = command().args(arguments).output().unwrap();
    let missing = text(&output.stderr).contains("ONNX Runtime's library was not found");
    if missing && std::env::var_os("TURBO_REQUIRE_ORT").is_none() {
        println!("skipped: ONNX Runtime's library was not found");
        return None;
    }
    Some(output)
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    for part in says {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_demo_runs_and_a_second_run_takes_the_embedding_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (out, sheet, cache) =
        (folder.path().join("a.mp4"), folder.path().join("sheet.png"), folder.path().join("cache"));
    let engine = engine().to_str().unwrap();
    let arguments = [
        engine,
        "--prompt",
        PROMPT,
        "-o",
        out.to_str().unwrap(),
        "--contact-sheet",
        sheet.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "--steps",
        "2",
        "--json",
    ];
    let Some(first) = run(&arguments) else { return };
    assert!(first.status.success(), "{}", text(&first.stderr));
    let report = text(&first.stdout);
    for part in
        ["\"frames\": 33", "\"steps\": 2", "\"cached_embedding\": false", "prompt_to_file_seconds", "step 2"]
    {
        assert!(report.contains(part), "`{part}` is not in: {report}");
    }
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(&bytes[4..8], b"ftyp");
    assert!(sheet.is_file());
    let second = run(&arguments).unwrap();
    assert!(text(&second.stdout).contains("\"cached_embedding\": true"));
    assert_eq!(std::fs::read(&out).unwrap(), bytes, "the same seed gave another video");
    assert_eq!(files(folder.path()), ["a.mp4", "cache", "sheet.png"]);
}

#[test]
fn seeds_samplers_and_thread_counts_mean_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let video = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut arguments =
            vec![engine().to_str().unwrap(), "-p", PROMPT, "--steps", "1", "--no-cache", "-q"];
        let out_text = out.to_str().unwrap().to_string();
        arguments.extend(["-o", &out_text]);
        arguments.extend(more);
        let output = run(&arguments)?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        Some(std::fs::read(out).unwrap())
    };
    let Some(zero) = video("zero.safetensors", &[]) else { return };
    assert_eq!(video("one-thread.safetensors", &["--threads", "1"]).unwrap(), zero);
    assert_ne!(video("seven.safetensors", &["--seed", "7"]).unwrap(), zero);
    assert_ne!(video("cuda.safetensors", &["--noise", "torch-cuda"]).unwrap(), zero);
}

#[test]
fn damaged_engine_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.mp4");
    let whole = std::fs::read(engine()).unwrap();
    let damaged = folder.path().join("damaged.plan");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let cases: [(&str, &[u8]); 4] = [
        ("empty", &[]),
        ("truncated", &whole[..whole.len() / 3]),
        ("flipped", &flipped),
        ("text", b"hello, I am text"),
    ];
    for (name, bytes) in cases {
        std::fs::write(&damaged, bytes).unwrap();
        let output =
            command().arg(&damaged).args(["-p", PROMPT, "-o", out.to_str().unwrap()]).output().unwrap();
        refused(&output, 3, &["damaged.plan"]);
        assert_eq!(files(folder.path()), ["damaged.plan"], "{name}");
    }
    let output = command().arg(folder.path().join("none.plan")).args(["-p", PROMPT]).output().unwrap();
    refused(&output, 3, &["none.plan"]);
}

#[test]
fn choices_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine().to_str().unwrap();
    let out = folder.path().join("out.mp4");
    let out = out.to_str().unwrap();
    refused(&command().output().unwrap(), 2, &["no engine file is given"]);
    refused(&command().arg(engine).output().unwrap(), 2, &["no prompt is given"]);
    let unknown = folder.path().join("out.avi");
    let unknown = command().args([engine, "-p", PROMPT, "-o", unknown.to_str().unwrap()]).output().unwrap();
    refused(&unknown, 2, &[".avi", ".mp4"]);
    let nowhere = command().args([engine, "-p", PROMPT, "-o", "/no/such/folder/out.mp4"]).output().unwrap();
    refused(&nowhere, 4, &["/no/such/folder"]);
    let picture = folder.path().join("picture.png");
    std::fs::write(&picture, "not a picture").unwrap();
    let strange =
        command().args([engine, "-p", PROMPT, "-o", out, "-i", picture.to_str().unwrap()]).output().unwrap();
    refused(&strange, 3, &["picture.png"]);
    std::fs::remove_file(&picture).unwrap();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/truth/00.png");
    if let Some(output) = run(&[engine, "-p", PROMPT, "-o", out, "-i", image.to_str().unwrap()]) {
        refused(&output, 2, &["cannot use an image"]);
    }
    if let Some(output) = run(&[engine, "-p", "   ", "-o", out]) {
        refused(&output, 2, &["prompt"]);
    }
    if let Some(output) = run(&[engine, "-p", PROMPT, "-o", out, "--steps", "9"]) {
        refused(&output, 2, &["9", "4"]);
    }
    let missing =
        command().args([engine, "-p", PROMPT, "-o", out, "--onnxruntime", "/no/lib.so"]).output().unwrap();
    refused(&missing, 4, &["/no/lib.so"]);
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
}

#[test]
fn long_and_mixed_prompts_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gif");
    let long = "a red circle \u{1f600} \u{4e2d}\u{6587} ".repeat(200);
    let arguments =
        [engine().to_str().unwrap(), "-p", &long, "-o", out.to_str().unwrap(), "--steps", "1", "--no-cache"];
    let Some(output) = run(&arguments) else { return };
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("tokens too long"), "{}", text(&output.stderr));
    assert!(out.is_file());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_in_any_stage_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.mp4");
    let arguments = [engine().to_str().unwrap(), "-p", PROMPT, "-o", out.to_str().unwrap(), "--no-cache"];
    let start = Instant::now();
    let Some(whole) = run(&arguments) else { return };
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let time = start.elapsed();
    std::fs::remove_file(&out).unwrap();
    for share in [0.2, 0.4, 0.6, 0.8] {
        let child = command()
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(time.as_secs_f64() * share));
        let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        if signal.success() && !output.status.success() {
            refused(&output, 130, &["interrupted"]);
            assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
        } else if out.exists() {
            // The run was faster this time and had ended.
            std::fs::remove_file(&out).unwrap();
        }
    }
}

/// Names of timed stages, once it is checked that each was timed so often and that no time is impossible.
fn timed(stages: &Value, runs: usize) -> Vec<&str> {
    let stage = |stage: &Value| {
        let number = |value: &Value| value.as_f64().unwrap();
        let spread = &stage["milliseconds"];
        let [least, median, greatest] = ["least", "median", "greatest"].map(|name| number(&spread[name]));
        let all = stage["all_milliseconds"].as_array().unwrap();
        assert_eq!(all.len(), runs, "{stage}");
        assert!(0.0 < least && least <= median && median <= greatest, "{stage}");
        assert!(all.iter().map(number).all(|time| (least..=greatest).contains(&time)), "{stage}");
        assert!(number(&stage["load_milliseconds"]) > 0.0);
        assert_eq!((stage.get("gpu_memory"), stage.get("ops")), (None, None), "there is no GPU");
    };
    let stages = stages.as_array().unwrap();
    stages.iter().for_each(stage);
    stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect()
}

#[test]
fn bench_times_every_stage_once() {
    let engine = engine().to_str().unwrap();
    let Some(output) = run(&["bench", engine, "--runs", "2", "--threads", "2", "--json"]) else { return };
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = ["text_encoder", "dit_context", "dit", "vae_decoder_first", "vae_decoder"];
    assert_eq!(timed(&report["stages"], 2), all);
    assert!(timed(&report["steps"], 2).is_empty(), "one stage is a step by itself");
    assert_eq!(
        (&report["size"], &report["frames"], &report["runs"]),
        (&"208x112".into(), &33.into(), &2.into())
    );
    let machine = report["machine"].as_str().unwrap();
    assert!(machine.starts_with("ONNX Runtime 1.") && machine.ends_with(", 2 threads"), "{machine}");
}

#[test]
fn bench_adds_up_the_parts_of_a_transformer() {
    let size = vec!["96x64".parse().unwrap()];
    let small = Choices { size, frames: vec![5, 1], topk: Some(1.0), parts: Some(2), ..Choices::default() };
    let (_folder, path) = compiled(small);
    let bench = |more: &[&str]| run(&[&["bench", path.to_str().unwrap(), "--runs", "1"], more].concat());
    let Some(output) = bench(&["--stage", "dit_2of2", "--stage", "dit_1of2", "--json"]) else { return };
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(timed(&report["stages"], 1), ["dit_1of2", "dit_2of2"]);
    assert_eq!(timed(&report["steps"], 1), ["step"]);
    let median = |stage: &Value| stage["milliseconds"]["median"].as_f64().unwrap();
    let sum = median(&report["stages"][0]) + median(&report["stages"][1]);
    assert!((median(&report["steps"][0]) / sum - 1.0).abs() < 1e-9);

    let output = bench(&["--size", "96x64", "--frames", "1"]).unwrap();
    let table = text(&output.stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("96x64, 1 frames, 1 runs: ONNX Runtime 1."), "{table}");
    let names: Vec<&str> = lines[2..].iter().filter_map(|line| line.split_whitespace().next()).collect();
    let stages = ["text_encoder", "dit_context", "dit_1of2", "dit_2of2", "vae_decoder_first", "vae_decoder"];
    assert_eq!(names, [&["ms"], &stages[..], &["step"]].concat());
    assert!(lines[2..].iter().all(|line| line.len() == lines[2].len()), "{table}");

    refused(
        &bench(&["--stage", "dit_2of2", "--stage", "dit"]).unwrap(),
        2,
        &["no stage `dit`", &stages.join(", ")],
    );
}

#[test]
fn bench_refuses_what_it_cannot_time() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine().to_str().unwrap();
    let bench = |arguments: &[&str]| command().arg("bench").args(arguments).output().unwrap();
    refused(&bench(&[]), 2, &["<ENGINE>"]);
    for runs in ["0", "-1", "1.5", "many", "4294967296"] {
        refused(&bench(&[engine, &format!("--runs={runs}")]), 2, &["--runs", runs]);
    }
    refused(&bench(&[engine, "--frames", "5"]), 2, &["no video of --frames 5", "--frames 33"]);
    refused(&bench(&[engine, "--prompt", PROMPT]), 2, &["--prompt"]);
    refused(&bench(&["/no/such.plan"]), 3, &["/no/such.plan"]);
    let damaged = folder.path().join("damaged.plan");
    std::fs::write(&damaged, "hello, I am text").unwrap();
    refused(&bench(&[damaged.to_str().unwrap()]), 3, &["damaged.plan"]);
    refused(&bench(&[engine, "--onnxruntime", "/no/lib.so"]), 4, &["/no/lib.so"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_bench() {
    let engine = engine().to_str().unwrap();
    let arguments = ["bench", engine, "--stage", "text_encoder", "--runs"];
    if run(&[&arguments[..], &["1"]].concat()).is_none() {
        return;
    }
    let child = command()
        .args(arguments)
        .arg("1000000000")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    refused(&output, 130, &["interrupted"]);
    assert!(output.stdout.is_empty());
}
