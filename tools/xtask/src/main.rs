//! The one way to do each chore: `cargo xtask --help`.

mod audit;
mod bench;
mod carry;
mod demo;
mod r#gen;
mod gpu;
mod python;
mod suite;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// The chores of this workspace
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Every test that needs no GPU: format, lints, generated files, licences, tests, fuzzing
    Test {
        /// Seconds for each fuzz target
        #[arg(long, default_value_t = 20)]
        fuzz_seconds: u32,
    },
    /// Compile the demo checkpoint and make demo.mp4 and a contact sheet
    Demo,
    /// Measure kernels and the demo, and write tools/bench/cpu.md
    Bench {
        /// Also compare the demo's videos with the true ones
        #[arg(long)]
        quality: bool,
    },
    /// Write the generated files: C++ traits of the ops and their documentation
    Gen {
        /// Only check that they are up to date
        #[arg(long)]
        check: bool,
    },
    /// Fuzz the readers of untrusted files
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Check the licences of all dependencies
    Audit,
    /// Put ONNX Runtime's library under target/onnxruntime
    Onnxruntime,
    /// Put what compiles the GPU libraries under target/toolchain, where CUDA or TensorRT is not installed
    Toolchain {
        /// nvcc and TensorRT's headers
        #[arg(long, required = true)]
        gpu: bool,
    },
    /// Compile the GPU libraries into target/gpu/lib and write target/gpu/resources.md
    Gpu {
        /// Architectures, such as 90a [default: 80,90a,120a]
        #[arg(long, value_delimiter = ',')]
        arch: Vec<String>,
        /// All architectures, and PTX for later ones
        #[arg(long, conflicts_with = "arch")]
        release: bool,
    },
    /// Put the programs, and all they need but TensorRT, into a folder for a GPU machine without network and compilers
    Carry {
        /// The folder
        folder: PathBuf,
        /// Golden vectors to take along: the folder that TURBO_GOLDEN names
        #[arg(long)]
        golden: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let chore = Cli::parse().chore;
    let done = match chore {
        Chore::Test { fuzz_seconds } => suite::test(fuzz_seconds),
        Chore::Demo => demo::demo(),
        Chore::Bench { quality } => bench::bench(quality),
        Chore::Gen { check } => r#gen::run(check),
        Chore::Fuzz { seconds } => suite::fuzz(seconds),
        Chore::Audit => audit::run(),
        Chore::Onnxruntime => python::onnxruntime().map(|path| println!("{}", path.display())),
        Chore::Toolchain { gpu: _ } => gpu::toolchain().map(|tools| println!("{tools}")),
        Chore::Gpu { arch, release } => gpu::build(&arch, release),
        Chore::Carry { folder, golden } => carry::carry(&folder, golden.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Runs a command in the root and fails when it does.
fn run(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}");
    let status = command.current_dir(root()).status().with_context(|| format!("cannot start {line}"))?;
    if !status.success() {
        bail!("{line} failed: {status}");
    }
    Ok(())
}

/// `cargo` with these arguments.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}
