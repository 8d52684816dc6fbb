//! The commands as processes on a machine with a GPU: they work, and say what is missing where something is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use turbo_engine_file::{EngineFile, Manifest, Writer};
use turbo_tests::demo::folder;

use crate::Cli;
use crate::report::Report;

/// Longest wait for a command that was told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// The commands, and where they work.
struct Commands<'a> {
    gpu_libraries: Option<PathBuf>,
    tensorrt: Option<PathBuf>,
    programs: PathBuf,
    place: &'a Path,
}

impl Commands<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.place).stdin(Stdio::null());
        if let Some(path) = &self.gpu_libraries {
            command.arg("--gpu-libraries").arg(path);
        }
        command
    }

    fn tensorrt(&self, mut command: Command) -> Command {
        if let Some(path) = &self.tensorrt {
            command.arg("--tensorrt").arg(path);
        }
        command
    }

    /// turbo-compile of the demo, with its plans in a cache.
    fn compile(&self, output: &str, cache: &str) -> Command {
        let mut command = self.command("turbo-compile");
        command.arg(folder()).args(["--target", "trt", "--effort", "0", "--output", output]);
        command.args(["--build-cache", cache]);
        command
    }

    fn run(&self, engine: &str) -> Command {
        let mut command = self.command("turbo-run");
        command.args([engine, "--prompt", "A red circle.", "--no-cache", "--output", "out.mp4"]);
        command
    }
}

/// Checks the commands with engine files in `place`.
pub fn run(cli: &Cli, report: &mut Report, place: &Path) -> Result<()> {
    let programs = std::env::current_exe()?.parent().context("a program without a folder")?.to_path_buf();
    if !programs.join("turbo-run").is_file() || !programs.join("turbo-compile").is_file() {
        println!("skipped: turbo-compile and turbo-run do not lie beside this program");
        return Ok(());
    }
    // The commands run in a folder of their own.
    let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
    let c = Commands {
        gpu_libraries: absolute(&cli.gpu_libraries)?,
        tensorrt: absolute(&cli.tensorrt)?,
        programs,
        place,
    };
    report.case("commands", "turbo-compile stops at Ctrl-C and leaves nothing", 0.0, || interrupted(&c));
    report.case("commands", "turbo-compile --target trt", 0.0, || {
        done(c.tensorrt(c.compile("engine.plan", "cache")).output()?).map(|_| 0.0)
    });
    report.case("commands", "turbo-run prints where the time went", 0.0, || {
        let mut run = c.tensorrt(c.run("engine.plan"));
        let said = done(run.arg("--json").output()?)?;
        let said: serde_json::Value = serde_json::from_slice(&said.stdout)?;
        let video = std::fs::metadata(place.join("out.mp4"))?.len();
        println!("{}", serde_json::to_string(&said)?);
        ensure!(video > 1000 && said["peak_gpu_memory_bytes"].as_u64().is_some(), "{video} bytes, {said}");
        Ok(0.0)
    });
    let mut refused = |what: &str, command: Command, code: i32, says: &[&str]| {
        report.case("commands", what, 0.0, || refusal(command, code, says));
    };
    let mut blind = c.tensorrt(c.run("engine.plan"));
    blind.env("CUDA_VISIBLE_DEVICES", "");
    refused("turbo-run without a GPU", blind, 4, &["GPU", "hint:"]);
    let mut blind = c.tensorrt(c.compile("other.plan", "cache"));
    blind.env("CUDA_VISIBLE_DEVICES", "");
    refused("turbo-compile without a GPU", blind, 4, &["GPU", "hint:"]);
    let mut nowhere = c.run("engine.plan");
    nowhere.args(["--tensorrt", "nowhere"]);
    refused("turbo-run without TensorRT", nowhere, 4, &["nowhere", "hint:"]);
    if let Some((infer, name)) = c.tensorrt.as_deref().and_then(infer) {
        let alone = place.join("alone");
        std::fs::create_dir_all(&alone)?;
        // Not a symbolic link: the parser is looked for beside the library itself.
        std::fs::copy(&infer, alone.join(name))?;
        let mut parserless = c.compile("other.plan", "cache-of-none");
        parserless.args(["--tensorrt", "alone"]);
        refused("turbo-compile without the parser", parserless, 4, &["libnvonnxparser", "hint:"]);
        // The runtime needs no parser.
        let mut run = c.run("engine.plan");
        run.args(["--tensorrt", "alone"]);
        report.case("commands", "turbo-run without the parser", 0.0, || done(run.output()?).map(|_| 0.0));
    }
    let mut refused = |what: &str, change: fn(&mut Manifest), says: &[&str]| {
        report.case("commands", what, 0.0, || {
            altered(&place.join("engine.plan"), &place.join("altered.plan"), change)?;
            refusal(c.tensorrt(c.run("altered.plan")), 4, says)
        });
    };
    refused(
        "an engine file for another GPU",
        |manifest| manifest.backend.gpu.iter_mut().for_each(|gpu| gpu.compute_capability = [12, 0]),
        &["compute capability 12.0", "turbo-compile MODEL --target trt"],
    );
    refused(
        "an engine file of another TensorRT",
        |manifest| manifest.backend.gpu.iter_mut().for_each(|gpu| gpu.tensorrt = "10.99.0".to_string()),
        &["TensorRT 10.99.0", "--tensorrt PATH"],
    );
    refused(
        "an engine file for a newer driver",
        |manifest| manifest.backend.gpu.iter_mut().for_each(|gpu| gpu.cuda = "99.0".to_string()),
        &["CUDA 99.0", "update the NVIDIA driver"],
    );
    refused(
        "an engine file of another version of an op",
        |manifest| manifest.ops.iter_mut().for_each(|op| op.version = "99".to_string()),
        &["version 99", "compile the model again"],
    );
    refused(
        "an engine file that needs more memory than there is",
        |manifest| manifest.stages.iter_mut().for_each(|stage| stage.activation_bytes = Some(1 << 46)),
        &["GiB of GPU memory", "hint:"],
    );
    Ok(())
}

/// libnvinfer in a folder, or itself, and the name that the loader knows it by.
fn infer(tensorrt: &Path) -> Option<(PathBuf, String)> {
    let named = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // libnvinfer.so.10, not libnvinfer.so.10.6.0
        let major = name.strip_prefix("libnvinfer.so.")?.parse::<u32>().ok();
        major.map(|_| (path, name))
    };
    let inside = || std::fs::read_dir(tensorrt).ok()?.flatten().find_map(|entry| named(entry.path()));
    named(tensorrt.to_path_buf()).or_else(inside)
}

/// An engine file with the same entries and another manifest.
fn altered(from: &Path, to: &Path, change: fn(&mut Manifest)) -> Result<()> {
    let file = EngineFile::open(from)?;
    let mut manifest = file.manifest().clone();
    let mut writer = Writer::create(to)?;
    for entry in std::mem::take(&mut manifest.entries) {
        writer.add(&entry.path, file.bytes(&entry.path)?)?;
    }
    change(&mut manifest);
    writer.finish(manifest)?;
    Ok(())
}

fn done(output: Output) -> Result<Output> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

fn refusal(mut command: Command, code: i32, says: &[&str]) -> Result<f64> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("    {}", text.trim().replace('\n', "\n    "));
    ensure!(output.status.code() == Some(code), "{} instead of {code}: {text}", output.status);
    for part in says {
        ensure!(text.contains(part), "`{part}` is not said: {text}");
    }
    Ok(0.0)
}

/// Ctrl-C while TensorRT builds.
fn interrupted(c: &Commands<'_>) -> Result<f64> {
    let mut command = c.tensorrt(c.compile("stopped.plan", "cache-of-stopped"));
    // Not a pipe: nobody would read it while this waits.
    let said = c.place.join("said");
    let mut child = command.stderr(File::create(&said)?).stdout(Stdio::null()).spawn()?;
    // TensorRT takes seconds to begin, and more to build the first plan.
    std::thread::sleep(Duration::from_secs(7));
    ensure!(child.try_wait()?.is_none(), "it was done before it could be stopped");
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    ensure!(kill.success(), "kill: {kill}");
    let asked = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if asked.elapsed() > PATIENCE => {
                child.kill()?;
                anyhow::bail!("it went on for {PATIENCE:?}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    println!("    stopped after {:.1} s", asked.elapsed().as_secs_f64());
    ensure!(status.code() == Some(130), "{status}: {}", std::fs::read_to_string(&said)?);
    let left: Vec<_> = std::fs::read_dir(c.place)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("stopped.plan") || name.ends_with(".part"))
        .collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(0.0)
}
