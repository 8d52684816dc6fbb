//! The command `turbo-compile`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use turbo_compile::choices::Target;
use turbo_compile::inspect::{self, size};
use turbo_compile::{Choices, CompileError, Progress, Report, compile};
use turbo_engine_file::EngineFile;
use turbo_trt::{Library, Places};

/// Compiles a Wan video diffusion model into one engine file that turbo-run runs
#[derive(Parser)]
#[command(name = "turbo-compile", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 ok, 2 usage, 3 bad input file, 4 does not fit this machine, 130 interrupted"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    choices: Choices,
    /// Recipe file with choices; flags given here win over it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    recipe: Option<PathBuf>,
    /// Write every choice of this compile to a recipe file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    save_recipe: Option<PathBuf>,
    /// Print a machine-readable report on standard output
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Also list tensors and files that were not needed
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show what an engine file holds: stages, ops, shapes, sizes, recipe, sources, digests
    Inspect {
        /// Engine file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Print the manifest as JSON
        #[arg(long)]
        json: bool,
        /// Also check the digest of every entry
        #[arg(long)]
        verify: bool,
    },
    /// Print a shell completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let code = exit_code(&error);
            if matches!(error.downcast_ref(), Some(CompileError::Interrupted)) {
                turbo_trt::end_process(code);
            }
            ExitCode::from(code)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<CompileError>() {
        return error.exit_code();
    }
    if error.downcast_ref::<turbo_engine_file::Error>().is_some() { 3 } else { 4 }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let out = &mut std::io::stdout();
    match cli.command {
        Some(Command::Inspect { file, json, verify }) => {
            let engine = EngineFile::open(&file)?;
            if verify {
                engine.verify()?;
            }
            let text = match json {
                true => serde_json::to_string_pretty(engine.manifest())? + "\n",
                false => inspect::text(&engine),
            };
            out.write_all(text.as_bytes()).context("cannot write to standard output")
        }
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "turbo-compile", &mut script);
            out.write_all(&script).context("cannot write to standard output")
        }
        Some(Command::Man) => {
            clap_mangen::Man::new(Cli::command()).render(out).context("cannot write to standard output")
        }
        None => compile_command(&cli),
    }
}

fn compile_command(cli: &Cli) -> anyhow::Result<()> {
    let mut choices = cli.choices.clone();
    if let Some(path) = &cli.recipe {
        choices = choices.over(Choices::read(path)?);
    }
    if choices.model.is_none() && choices.high_noise.is_none() {
        let what = "no model is given".to_string();
        let hint = "turbo-compile MODEL, or turbo-compile --recipe recipe.yaml; see --help".to_string();
        return Err(CompileError::Usage { what, hint }.into());
    }
    if choices.target == Some(Target::Trt) {
        let places = Places { shim: choices.gpu_libraries.as_deref(), tensorrt: choices.tensorrt.as_deref() };
        // A library that cannot be loaded is the compile's to explain.
        if let Ok(library) = Library::load(&places) {
            library.reach_resources().map_err(CompileError::from)?;
        }
    }
    let mut progress = Bars::new(cli.quiet || cli.json);
    let cancelled = progress.cancelled.clone();
    ctrlc::set_handler(move || cancelled.store(true, Ordering::Relaxed))
        .context("cannot listen for Ctrl-C")?;
    // Opened before any work, so that a recipe that cannot be saved leaves no engine file.
    let recipe = cli.save_recipe.as_deref().map(|path| Ok((path, temporary(path)?))).transpose();
    let recipe = recipe.map_err(|(path, cause)| CompileError::Io { path, cause })?;
    let report = compile(&choices, &mut progress)?;
    progress.finish();
    if let Some((path, mut file)) = recipe {
        let saved = file.write_all(report.choices.to_yaml()?.as_bytes());
        let saved = saved.and_then(|()| file.persist(path).map_err(|e| e.error));
        saved.map_err(|cause| CompileError::Io { path: path.to_path_buf(), cause })?;
    }
    let text = match cli.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false if cli.quiet => String::new(),
        false => summary(&report, cli.verbose),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// A temporary file beside `path`, which takes its name when it is whole.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, (PathBuf, std::io::Error)> {
    let failed = |cause| (path.to_path_buf(), cause);
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(".turbo-").suffix(".part").tempfile_in(folder).map_err(failed)
}

fn summary(report: &Report, verbose: bool) -> String {
    let mut text =
        format!("{}: {} in {:.1} s", report.output.display(), size(report.bytes), report.total_seconds);
    let laps: Vec<String> = report.seconds.iter().map(|(name, s)| format!("{name} {s:.2}")).collect();
    text += &format!(" ({})\n", laps.join(", "));
    for skipped in &report.skipped {
        text += &format!("warning: skipped {skipped}\n");
    }
    if verbose {
        for (path, names) in &report.unused {
            text += &format!("{}: {} tensors not needed\n", path.display(), names.len());
            for name in names {
                text += &format!("  {name}\n");
            }
        }
    }
    text
}

/// Parts of a bar whose work is not counted in bytes.
const SHARES: u64 = 1000;

/// Progress bars on standard error, where that is a terminal.
struct Bars {
    bar: Option<ProgressBar>,
    off: bool,
    cancelled: Arc<AtomicBool>,
}

impl Bars {
    fn new(off: bool) -> Self {
        let off = off || !std::io::stderr().is_terminal();
        Bars { bar: None, off, cancelled: Arc::default() }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn begin(&mut self, what: &str, total: Option<u64>) {
        self.finish();
        if self.off {
            return;
        }
        let bar = match total {
            Some(total) => {
                let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let bar = ProgressBar::new(total);
                match ProgressStyle::with_template(style) {
                    Ok(style) => bar.with_style(style),
                    Err(_) => bar,
                }
            }
            None => ProgressBar::new_spinner(),
        };
        bar.set_message(what.to_string());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn share(&mut self, share: f64) {
        let Some(bar) = &self.bar else { return };
        if bar.length().is_none()
            && let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% {elapsed}")
        {
            bar.set_style(style);
            bar.set_length(SHARES);
        }
        bar.set_position((share * SHARES as f64) as u64);
    }

    fn stop_flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }
}
