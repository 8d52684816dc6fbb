//! The command `turbo-run`.

mod arguments;
mod bars;
mod bench;
mod machine;
mod size;
mod video;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use arguments::{Cli, Command};
use bars::Bars;
use clap::{CommandFactory, Parser};
use etcetera::BaseStrategy;
use serde_json::json;
use turbo_engine_file::EngineFile;
use turbo_pipeline::{EmbeddingCache, Engine, Precision, Report, Request, RunError};
use video::Video;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 2 usage, 3 bad input file, 4 does not fit this machine, 130 interrupted.
fn exit_code(error: &anyhow::Error) -> u8 {
    let Some(error) = error.downcast_ref::<RunError>() else {
        return if error.downcast_ref::<Usage>().is_some() { 2 } else { 4 };
    };
    match error {
        RunError::Sampler(
            turbo_sampler::Error::Read { .. }
            | turbo_sampler::Error::Format { .. }
            | turbo_sampler::Error::Tensor { .. },
        ) => 3,
        RunError::Usage { .. } | RunError::Text(_) | RunError::Sampler(_) => 2,
        RunError::EngineFile(_) | RunError::Inconsistent(_) => 3,
        RunError::Media(error) => media_code(error),
        RunError::Backend(_) | RunError::TensorRt(_) | RunError::Machine { .. } => 4,
        RunError::Interrupted => 130,
    }
}

/// Images are input; a format or size that an output cannot have is usage; the rest is this machine's.
fn media_code(error: &turbo_media::Error) -> u8 {
    use turbo_media::Error;
    match error {
        Error::NotAnImage { .. }
        | Error::ReadImage { .. }
        | Error::DecodeImage { .. }
        | Error::ImageTooLarge { .. } => 3,
        Error::UnknownOutput { .. } | Error::DoesNotFit { .. } => 2,
        _ => 4,
    }
}

/// A command line that says too little.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn run(cli: Cli) -> anyhow::Result<()> {
    let out = &mut std::io::stdout();
    match &cli.command {
        Some(Command::Bench(arguments)) => bench::bench(arguments),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "turbo-run", &mut script);
            out.write_all(&script).context("cannot write to standard output")
        }
        Some(Command::Man) => {
            clap_mangen::Man::new(Cli::command()).render(out).context("cannot write to standard output")
        }
        None => generate(&cli),
    }
}

fn generate(cli: &Cli) -> anyhow::Result<()> {
    let start = Instant::now();
    let missing =
        |what: &str| Usage(format!("{what}\nhint: turbo-run engine.plan --prompt \"...\"; see --help"));
    let path = cli.engine.as_ref().ok_or_else(|| missing("no engine file is given"))?;
    let prompt = cli.prompt.clone().ok_or_else(|| missing("no prompt is given"))?;
    let file = EngineFile::open(path).map_err(RunError::from)?;
    let (index, shape) = size::choose(file.manifest(), cli.video.size, cli.video.frames)?;
    let image = cli.image.as_deref().map(turbo_media::load_image).transpose().map_err(RunError::from)?;
    let mut bars = Bars::new(cli.quiet || cli.json);
    machine::listen(&bars)?;
    // Opened before any work, so that an output that cannot be written fails in the first second.
    let video = Video::create(&cli.output, shape, cli.contact_sheet.as_deref())?;
    let backend = machine::backend(&file, &cli.machine)?;
    let request = Request {
        video: index,
        prompt,
        image,
        seed: cli.seed,
        steps: cli.steps,
        sampler: cli.sampler,
        sigma_max: cli.sigma_max,
        noise: cli.noise.source(cli.seed).map_err(RunError::from)?,
        precision: Precision::Bf16,
        cache: cache_folder(cli).map(|folder| EmbeddingCache::new(&folder)),
    };
    let engine = Engine::new(file, backend)?;
    let opened = start.elapsed().as_secs_f64();
    let (report, encoding) = video.fill(|frame| engine.generate(request, &mut bars, frame))?;
    bars.finish();
    let total = start.elapsed().as_secs_f64();
    let text = match (cli.json, cli.quiet) {
        (true, _) => {
            let mut value = serde_json::to_value(&report)?;
            value["output"] = json!(cli.output);
            value["open_seconds"] = json!(opened);
            value["encode_seconds"] = json!(encoding);
            value["prompt_to_file_seconds"] = json!(total);
            serde_json::to_string_pretty(&value)? + "\n"
        }
        (false, true) => String::new(),
        (false, false) => summary(cli, &report, opened, encoding, total),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn cache_folder(cli: &Cli) -> Option<PathBuf> {
    match cli.no_cache {
        true => None,
        false => cli.cache_dir.clone().or_else(|| Some(cache_dir()?.join("turbo-run"))),
    }
}

fn cache_dir() -> Option<PathBuf> {
    etcetera::choose_base_strategy().ok().map(|strategy| strategy.cache_dir())
}

fn summary(cli: &Cli, report: &Report, opened: f64, encoding: f64, total: f64) -> String {
    let mut text = format!(
        "{}: {}, {} frames, {} steps, seed {} in {total:.2} s from prompt to file",
        cli.output.display(),
        report.size,
        report.frames,
        report.steps,
        report.seed
    );
    if let Some(peak) = report.peak_memory_bytes {
        text += &format!(", peak memory {:.0} MiB", peak as f64 / (1 << 20) as f64);
    }
    if let Some(peak) = report.peak_gpu_memory_bytes {
        text += &format!(", on the GPU {:.0} MiB", peak as f64 / (1 << 20) as f64);
    }
    text.push('\n');
    let mut parts: Vec<(String, f64)> = vec![("open".to_string(), opened)];
    parts.extend(report.parts.iter().map(|p| (p.part.clone(), p.seconds)));
    parts.push(("finish video".to_string(), encoding));
    let shown = |(_, seconds): &&(String, f64)| cli.verbose || *seconds >= 0.01;
    for (part, seconds) in parts.iter().filter(shown) {
        text += &format!("  {part:<24} {seconds:8.3} s\n");
    }
    text
}
