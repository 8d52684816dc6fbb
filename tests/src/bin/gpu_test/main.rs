//! The tests that need a GPU, as one program that prints a table and writes a JSON report.
//!
//! It needs the files under `target/`, a folder with TensorRT's libraries and the golden vectors; no network, no
//! compilers. `tests/gpu/README.md` says how to carry it to a GPU machine.

mod commands;
mod demo;
mod golden;
mod networks;
mod ops;
mod random;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use report::Report;
use turbo_tests::gpu::Gpu;
use turbo_trt::{Library, Places};

/// Runs the tests that need a GPU
#[derive(Parser)]
struct Cli {
    /// TensorRT: its folder, or libnvinfer itself [default: TENSORRT_ROOT, then the loader's path]
    #[arg(long)]
    tensorrt: Option<PathBuf>,
    /// Folder of libturbo_trt and libturbo_plugins [default: beside this program, then target/gpu/lib]
    #[arg(long)]
    gpu_libraries: Option<PathBuf>,
    /// Golden vectors: their folder, with the set from the reference's GPU kernels in its subfolder gpu
    #[arg(long)]
    golden: Option<PathBuf>,
    /// Only these suites of the golden vectors
    #[arg(long, value_delimiter = ',', requires = "golden")]
    suites: Vec<String>,
    /// Compile the demo checkpoint for both backends, compare their videos, and try the commands with it
    #[arg(long)]
    demo: bool,
    /// Networks of the real shapes with random weights, such as 1.3b-480p-w8a8
    #[arg(long, value_delimiter = ',')]
    networks: Vec<String>,
    /// Folder that keeps the networks' weights and plans for the next call
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// How long TensorRT looks for fast kernels of the networks, as `turbo-compile --effort`
    #[arg(long, value_name = "0-5", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=5))]
    effort: u8,
    /// Build the networks without running them
    #[arg(long)]
    only_build: bool,
    /// Leave the ops out
    #[arg(long)]
    no_ops: bool,
    /// Where the report goes
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let places = Places { shim: cli.gpu_libraries.as_deref(), tensorrt: cli.tensorrt.as_deref() };
    Library::load(&places)?.reach_resources()?;
    let gpu = Gpu::open(places.shim, places.tensorrt)?;
    let mut report = Report::new(&gpu.device, cli.json.as_deref())?;
    if !cli.no_ops {
        ops::run(&gpu, &mut report);
    }
    if let Some(folder) = &cli.golden {
        golden::run(&gpu, &cli, &mut report, folder);
    }
    let temporary = tempfile::tempdir()?;
    let scratch = cli.scratch.as_deref().unwrap_or(temporary.path()).canonicalize()?;
    for name in &cli.networks {
        networks::run(&gpu, &cli, &mut report, name, &scratch);
    }
    if cli.demo {
        let place = tempfile::tempdir()?;
        let all = demo::run(&cli, &mut report, place.path())
            .and_then(|()| commands::run(&cli, &mut report, place.path()));
        report.case("demo", "all of it was tried", 0.0, || all.map(|()| 0.0));
    }
    let (cases, failed) = report.count();
    println!("{} passed, {failed} failed", cases - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
