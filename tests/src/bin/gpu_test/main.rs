//! The tests that need a GPU, as one program that prints a table and writes a JSON report.
//!
//! It needs the files under `target/`, a folder with TensorRT's libraries and the golden vectors; no network, no
//! compilers. `tests/gpu/README.md` says how to carry it to a GPU machine.

mod demo;
mod golden;
mod networks;
mod ops;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use report::Report;
use turbo_tests::gpu::Gpu;

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
    /// Compile the demo checkpoint for both backends and compare their videos
    #[arg(long)]
    demo: bool,
    /// Networks of the real shapes with random weights, such as 1.3b-480p-w8a8
    #[arg(long, value_delimiter = ',')]
    networks: Vec<String>,
    /// Leave the ops out
    #[arg(long)]
    no_ops: bool,
    /// Where the report goes
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let gpu = Gpu::open(cli.gpu_libraries.as_deref(), cli.tensorrt.as_deref())?;
    let found = gpu.device.gpu();
    let mut report = Report {
        gpu: found.name.clone(),
        compute_capability: found.compute_capability,
        tensorrt: gpu.device.library().version().to_string(),
        cuda_driver: gpu.device.library().shim().driver_version()?,
        version: env!("CARGO_PKG_VERSION"),
        rows: Vec::new(),
        figures: Vec::new(),
    };
    println!("{}, TensorRT {}, driver for CUDA {:?}", report.gpu, report.tensorrt, report.cuda_driver);
    if !cli.no_ops {
        ops::run(&gpu, &mut report);
    }
    if let Some(folder) = &cli.golden {
        golden::run(&gpu, &cli, &mut report, folder);
    }
    for name in &cli.networks {
        networks::run(&gpu, &mut report, name);
    }
    if cli.demo {
        demo::run(&cli, &mut report)?;
    }
    let failed = report.rows.iter().filter(|row| !row.problem.is_empty()).count();
    println!("{} passed, {failed} failed", report.rows.len() - failed);
    if let Some(path) = cli.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    std::process::exit(i32::from(failed > 0));
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}
