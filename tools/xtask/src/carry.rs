//! The programs for a GPU machine that has nothing of ours: one folder with all they need but TensorRT.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cargo, python, root, run};

/// Programs, from target/release.
const PROGRAMS: [&str; 4] = ["turbo-compile", "turbo-run", "turbo-kernels", "gpu_test"];

/// Puts programs, GPU libraries, ONNX Runtime, the demo and golden vectors into a folder.
pub fn carry(to: &Path, golden: Option<&Path>) -> Result<()> {
    let packages = ["turbo-compile", "turbo-run", "turbo-kernels", "turbo-tests"];
    let mut build = cargo(&["build", "--release", "--bins"]);
    run(build.args(packages.iter().flat_map(|package| ["--package", package])))?;
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for program in PROGRAMS {
        stripped(&root().join("target/release").join(program), &to.join(program))?;
    }
    let libraries = root().join("target/gpu/lib");
    let Ok(entries) = std::fs::read_dir(&libraries) else {
        bail!("{} is missing: cargo xtask gpu builds the libraries", libraries.display());
    };
    for library in entries.flatten().map(|entry| entry.path()) {
        stripped(&library, &to.join(library.file_name().unwrap_or_default()))?;
    }
    let onnxruntime = python::onnxruntime()?;
    stripped(&onnxruntime, &to.join("libonnxruntime.so"))?;
    folder(&root().join("models/demo"), &to.join("demo"))?;
    if let Some(golden) = golden {
        folder(golden, &to.join("golden"))?;
    }
    let script = to.join("all.sh");
    std::fs::copy(root().join("tests/gpu/all.sh"), &script)
        .with_context(|| format!("cannot write {}", script.display()))?;
    println!(
        "{}: bash all.sh TENSORRT OUT there, or ./turbo-kernels test, or ./gpu_test --help",
        to.display()
    );
    Ok(())
}

/// Copies a program or library without its symbols, which are most of it.
fn stripped(from: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("strip").arg("--strip-all").arg("-o").args([to, from]).status();
    let status = stripped.context("strip of binutils is needed")?;
    if !status.success() {
        bail!("strip cannot read {}", from.display());
    }
    Ok(())
}

fn folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => folder(&entry.path(), &place)?,
            false => {
                // An earlier copy of a file that may not be written cannot be written over.
                drop(std::fs::remove_file(&place));
                let copied = std::fs::copy(entry.path(), &place);
                copied.with_context(|| format!("cannot copy {}", entry.path().display()))?;
            }
        }
    }
    Ok(())
}
