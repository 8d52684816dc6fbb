//! The GPU libraries: kernels, TensorRT plugins and the shim to TensorRT, for every major version of TensorRT.

mod resources;
mod toolchain;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub use toolchain::toolchain;

use crate::{root, run};

/// Architectures while developing: one of each generation whose kernels differ.
const DEVELOPMENT: [&str; 3] = ["80", "90a", "120a"];

/// What is shipped: machine code for every GPU of today, and PTX for those of tomorrow.
const RELEASE: [&str; 6] = ["80", "86", "89", "90a", "100a", "120a"];
const RELEASE_PTX: [&str; 2] = ["90", "120"];

/// Compiles the libraries into target/gpu/lib, checks what they export, and writes target/gpu/resources.md.
pub fn build(archs: &[String], release: bool) -> Result<()> {
    let tools = toolchain()?;
    let (archs, ptx) = match (release, archs.is_empty()) {
        (true, _) => (RELEASE.join(";"), RELEASE_PTX.join(";")),
        (false, true) => (DEVELOPMENT.join(";"), String::new()),
        (false, false) => (archs.join(";"), String::new()),
    };
    let gpu = root().join("target/gpu");
    let mut first = None;
    for headers in &tools.tensorrt {
        let folder = gpu.join(format!("trt{}", headers.major));
        let mut configure = Command::new("cmake");
        configure
            .arg("-S")
            .arg(root())
            .arg("-B")
            .arg(&folder)
            .arg(option("CMAKE_CUDA_COMPILER", &tools.nvcc))
            .arg(option("TENSORRT_INCLUDE_DIR", &headers.include))
            // The kernels know nothing of TensorRT and are compiled once.
            .arg(option("TURBO_KERNELS_FROM", first.as_deref().unwrap_or(Path::new(""))))
            .arg(option("TURBO_ARCHS", Path::new(&archs)))
            .arg(option("TURBO_PTX", Path::new(&ptx)));
        run(&mut configure).context("CMake 3.25 or newer and a C++17 compiler are needed")?;
        let mut compile = Command::new("cmake");
        compile.arg("--build").arg(&folder);
        if std::env::var_os("CMAKE_BUILD_PARALLEL_LEVEL").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            compile.arg("--parallel").arg(cores.to_string());
        }
        run(&mut compile)?;
        install(&folder.join("lib"), &gpu.join("lib"))?;
        first.get_or_insert(folder);
    }
    let first = first.context("there are no TensorRT headers")?;
    resources::report(
        &first.join("plugins/CMakeFiles/turbo_kernels_objects.dir/ops"),
        &gpu.join("resources.md"),
    )
}

/// `-Dname=value`
fn option(name: &str, value: &Path) -> String {
    format!("-D{name}={}", value.display())
}

/// Copies the libraries of one build to where the commands look for them, each whole or not at all.
fn install(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let library = entry?.path();
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        check_exports(&library, &name)?;
        let part = to.join(format!("{name}.part"));
        std::fs::copy(&library, &part).with_context(|| format!("cannot copy {}", library.display()))?;
        std::fs::rename(&part, to.join(&name))?;
        println!("target/gpu/lib/{name}");
    }
    Ok(())
}

/// The dynamic symbols that a library defines are its interface and nothing else.
fn check_exports(library: &Path, name: &str) -> Result<()> {
    let nm = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output();
    let nm = nm.context("nm of binutils is needed")?;
    ensure!(nm.status.success(), "nm cannot read {}", library.display());
    let text = String::from_utf8_lossy(&nm.stdout).into_owned();
    let found: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let (expected, fits) = match name.split(['-', '.']).next() {
        Some("libturbo_plugins") => {
            ("getCreators, setLoggerFinder", found.iter().eq(&["getCreators", "setLoggerFinder"]))
        }
        Some("libturbo_kernels") => ("turbo_*", found.iter().all(|s| s.starts_with("turbo_"))),
        Some("libturbo_trt") => ("turbo_trt_*", found.iter().all(|s| s.starts_with("turbo_trt_"))),
        _ => bail!("{name} is none of our libraries"),
    };
    ensure!(fits && !found.is_empty(), "{name} must export {expected}, but exports {found:?}");
    Ok(())
}
