//! Figures: kernels against ONNX Runtime's, and the demo from checkpoint to video. Never an assertion.

use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::demo::{self, PROMPT};
use crate::{cargo, python, root, run};

/// Runs of the demo; the middle one counts.
const RUNS: usize = 5;
/// Where the report goes.
const REPORT: &str = "tools/bench/cpu.md";

/// Measures and writes the report; `quality` adds how close the demo's videos come to the truth.
pub fn bench(quality: bool) -> Result<()> {
    let library = python::onnxruntime()?;
    demo::build()?;
    run(&mut cargo(&["build", "--release", "--quiet", "--package", "turbo-tests", "--bins"]))?;
    let bin = root().join("target/release");
    let folder = tempfile::tempdir()?;
    let engine = folder.path().join("demo.plan");
    let mut report =
        format!("<!-- Written by `cargo xtask bench{}`. -->\n\n", if quality { " --quality" } else { "" });
    report += "# Figures of the CPU backend\n\n## Kernels\n\n";
    report += &capture(Command::new(bin.join("kernel_bench")).env("ORT_DYLIB_PATH", &library))?;

    let compile = |linear: &str| {
        let start = Instant::now();
        let mut command = Command::new(bin.join("turbo-compile"));
        command.args(["models/demo", "--quiet", "--linear", linear, "-o"]).arg(&engine);
        capture(&mut command)?;
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    };
    let compiled = middle((0..RUNS).map(|_| compile("w8a8")).collect::<Result<Vec<f64>>>()?);
    let mut totals = Vec::new();
    let mut last = Value::Null;
    for _ in 0..RUNS {
        let start = Instant::now();
        let mut command = Command::new(bin.join("turbo-run"));
        command.arg(&engine).args(["--prompt", PROMPT, "--no-cache", "--json", "-o"]);
        command.arg(folder.path().join("demo.mp4")).env("ORT_DYLIB_PATH", &library);
        let json = capture(&mut command)?;
        totals.push(start.elapsed().as_secs_f64());
        last = serde_json::from_str(&json).context("turbo-run --json")?;
    }
    let peak = last["peak_memory_bytes"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    let _ = write!(
        report,
        "\n## Demo\n\n33 frames of 208x112, 4 steps, W8A8 and SageSLA; the middle of {RUNS} runs, processes from start to \
         end.\n\n| | |\n|---|---|\n| compile | {compiled:.2} s |\n| prompt to file | {:.2} s |\n| peak memory | {peak:.0} MiB \
         |\n\nWhere the last run's time went:\n\n| part | s |\n|---|---|\n",
        middle(totals)
    );
    for part in last["parts"].as_array().into_iter().flatten() {
        let seconds = part["seconds"].as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(report, "| {} | {seconds:.3} |", part["part"].as_str().unwrap_or_default());
    }
    if quality {
        report +=
            "\n## Quality\n\nPSNR in dB against the ground truth, held-out captions; `--linear w8a8`.\n\n";
        let demo_quality = |sheet: Option<&str>| {
            let mut command = Command::new(bin.join("demo_quality"));
            command.arg(&engine).args(sheet.map(|sheet| root().join(sheet))).env("ORT_DYLIB_PATH", &library);
            capture(&mut command)
        };
        let w8a8 = demo_quality(Some("tools/bench/demo.png"))?;
        report += &w8a8;
        let mut means = vec![("w8a8", w8a8)];
        for linear in ["fp8", "bf16"] {
            compile(linear)?;
            means.push((linear, demo_quality(None)?));
        }
        report += "\nThe means of all recipes:\n\n| linears | reference, 4 steps | 4 steps | 3 steps | 2 steps |\n\
                   |---|---|---|---|---|\n";
        for (linear, table) in &means {
            let mean = table.lines().last().and_then(|line| Some(line.split_once("** |")?.1));
            let _ = writeln!(report, "| `{linear}` |{}", mean.context("demo_quality gave no mean")?);
        }
    }
    print!("{report}");
    std::fs::write(root().join(REPORT), report).with_context(|| format!("cannot write {REPORT}"))
}

/// What a command prints.
fn capture(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.current_dir(root()).output().with_context(|| format!("cannot start {line}"))?;
    if !output.status.success() {
        bail!("{line} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
