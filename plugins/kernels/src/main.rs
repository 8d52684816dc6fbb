//! The command `turbo-kernels`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use turbo_kernels::check::{self, Part, Selection};
use turbo_kernels::library::Library;
use turbo_kernels::{bench, report};

/// Runs the ops' CUDA kernels on their own.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// libturbo_kernels.so [default: beside this command, in ../gpu/lib or in target/gpu/lib]
    #[arg(long, global = true, value_name = "FILE")]
    library: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares the kernels with the references.
    Test {
        /// Only this op
        #[arg(long, value_name = "NAME")]
        op: Option<String>,
        /// Only cases whose name contains this
        #[arg(long, value_name = "TEXT")]
        case: Option<String>,
        /// Only the ops' own cases, without the models' sizes
        #[arg(long)]
        small: bool,
        /// Only every Nth of these cases, from the Ith on: for several processes side by side
        #[arg(long, value_name = "I/N")]
        part: Option<Part>,
        /// Exact allocations, nothing poisoned, a single run: for compute-sanitizer
        #[arg(long)]
        bare: bool,
        /// Write every result to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Times the kernels at the models' sizes, if the ops' own cases pass.
    Bench {
        /// Only this op
        #[arg(long, value_name = "NAME")]
        op: Option<String>,
        /// Write every result to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
fn run(cli: &Cli) -> Result<bool> {
    // What does not exist is told before a device is asked for.
    let selection = match &cli.command {
        Command::Test { op, case, small, part, bare, .. } => {
            Selection { op: op.as_deref(), case: case.as_deref(), small: *small, part: *part, bare: *bare }
        }
        Command::Bench { op, .. } => Selection { op: op.as_deref(), small: true, ..Selection::default() },
    };
    let jobs = check::jobs(selection)?;
    let library = Library::load(cli.library.as_deref())?;
    let device = library.device()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{device}\n")?;
    let outcomes = check::run(&library, &jobs, selection.bare, |outcome| {
        if let Some(line) = report::line(outcome) {
            eprintln!("{line}");
        }
    })?;
    writeln!(out, "{}", report::table(&outcomes))?;
    match &cli.command {
        Command::Test { json, .. } => {
            save(json.as_deref(), &report::to_json(&device, &outcomes))?;
            Ok(report::all_ok(&outcomes))
        }
        Command::Bench { .. } if !report::all_ok(&outcomes) => Ok(false),
        Command::Bench { json, .. } => {
            let mut written = Ok(());
            let timings = bench::run(&library, selection.op, |timing| {
                written =
                    std::mem::replace(&mut written, Ok(())).and_then(|()| writeln!(out, "{}", timing.line()));
            })?;
            written?;
            let rows: Vec<Value> = timings.iter().map(bench::Timing::to_json).collect();
            let report = json!({
                "device": report::device_json(&device),
                "worst_errors": report::worst_errors(&outcomes),
                "timings": rows,
            });
            save(json.as_deref(), &report)?;
            Ok(timings.iter().all(bench::Timing::ok))
        }
    }
}

/// Writes a report under a temporary name, then renames it.
fn save(path: Option<&Path>, report: &Value) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let temporary = path.with_extension("json.part");
    std::fs::write(&temporary, format!("{report:#}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
