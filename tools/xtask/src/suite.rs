//! Every check that needs no GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{audit, cargo, r#gen, gpu, python, root, run};

/// Fuzz targets, one per reader of untrusted files.
const FUZZ_TARGETS: [&str; 5] = ["safetensors_header", "torch_pickle", "torch_zip", "engine_zip", "manifest"];

/// Coverage instrumentation of libFuzzer, by flags that stable Rust takes.
const FUZZ_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs everything, cheapest first.
pub fn test(fuzz_seconds: u32) -> Result<()> {
    let start = Instant::now();
    let step = |name: &str| println!("\n== {name} ({:.0} s)", start.elapsed().as_secs_f64());
    step("format");
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("generated files");
    r#gen::run(true)?;
    step("licences");
    audit::run()?;
    step("lints");
    run(&mut cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Before the tests: those of the shim load it.
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        step("GPU libraries");
        gpu::build(&[], false)?;
    }
    step("tests");
    let library = python::onnxruntime()?;
    let mut tests = cargo(&["test", "--release", "--workspace"]);
    tests.env("ORT_DYLIB_PATH", library).env("TURBO_REQUIRE_ORT", "1");
    tests.env("TURBO_PYTHON", python::checkers()?);
    let summary = root().join("target/golden.md");
    std::fs::write(&summary, "")?;
    run(tests.env("TURBO_GOLDEN_SUMMARY", &summary))?;
    step("golden vectors");
    let rows = std::fs::read_to_string(&summary)?;
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_unstable();
    println!(
        "| family | cases | worst error | tolerance | where |\n|---|---|---|---|---|\n{}",
        rows.join("\n")
    );
    step("fuzzing");
    fuzz(fuzz_seconds)?;
    step("done");
    Ok(())
}

/// Builds the fuzz targets with coverage and runs each for a bounded time.
pub fn fuzz(seconds: u32) -> Result<()> {
    let crate_dir = root().join("tests/fuzz");
    if !crate_dir.join("Cargo.toml").exists() {
        bail!("{} is missing", crate_dir.display());
    }
    let mut seeds = cargo(&["test", "--release", "--quiet"]);
    if !seeds.current_dir(&crate_dir).status().context("cannot start cargo")?.success() {
        bail!("the fuzz targets' seeds are not what they should be");
    }
    let host = host()?;
    let mut build = cargo(&["build", "--release", "--bins", "--target", &host]);
    build.current_dir(&crate_dir).env("RUSTFLAGS", FUZZ_FLAGS);
    let status = build.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build");
    }
    for target in FUZZ_TARGETS {
        fuzz_one(
            &crate_dir,
            &crate_dir.join("target").join(&host).join("release").join(target),
            target,
            seconds,
        )?;
    }
    println!("{} passed, 0 failed", FUZZ_TARGETS.len());
    Ok(())
}

fn fuzz_one(crate_dir: &Path, binary: &PathBuf, target: &str, seconds: u32) -> Result<()> {
    let corpus = crate_dir.join("corpus").join(target);
    let artifacts = crate_dir.join("artifacts").join(target);
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    let output = Command::new(binary)
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&corpus)
        .arg(crate_dir.join("seeds").join(target))
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("fuzz target {target} failed; the input is under {}\n{log}", artifacts.display());
    }
    let runs =
        log.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:")).unwrap_or("").trim();
    println!("fuzz target {target}: {runs} runs in {seconds} s, no crash");
    Ok(())
}

/// The triple that this machine builds for.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_string())
}
