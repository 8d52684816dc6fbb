//! What comes out of Python wheels: ONNX Runtime's library, and the packages that check our ONNX files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{root, run};

/// The ONNX Runtime that tests and demo use.
const ONNXRUNTIME: &str = "onnxruntime==1.32.0";

/// Packages of the environment in which emitted ONNX files are checked.
const CHECKERS: [&str; 3] = ["onnx==1.20.0", "numpy", "ml_dtypes"];

/// The Python that is installed.
pub fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_string())
}

/// The library under target/onnxruntime, fetched out of the wheel when it is not there yet.
pub fn onnxruntime() -> Result<PathBuf> {
    let folder = root().join("target/onnxruntime");
    if let Some(library) = find_library(&folder) {
        return Ok(library);
    }
    let wheels = folder.join("wheel");
    std::fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    eprintln!("fetching ONNX Runtime ({ONNXRUNTIME})");
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"];
    run(Command::new(python()).args(pip).arg(&wheels).arg(ONNXRUNTIME))
        .context("ONNX Runtime's wheel is needed once; Python 3 with pip fetches it")?;
    let wheel = std::fs::read_dir(&wheels)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.context("pip left no wheel")?;
    let unpacked = folder.join("unpacked");
    run(Command::new(python()).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let inside =
        find_library(&unpacked.join("onnxruntime/capi")).context("the wheel holds no libonnxruntime")?;
    let library = folder.join(inside.file_name().unwrap_or_default());
    std::fs::rename(&inside, &library)?;
    std::fs::remove_dir_all(&unpacked)?;
    std::fs::remove_dir_all(&wheels)?;
    Ok(library)
}

/// `libonnxruntime.so.1.2.3`, `libonnxruntime.1.2.3.dylib` or `onnxruntime.dll` in a folder.
fn find_library(folder: &Path) -> Option<PathBuf> {
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        !name.contains("providers") && (name.starts_with("libonnxruntime.") || name == "onnxruntime.dll")
    };
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).filter(name).collect();
    found.sort();
    found.into_iter().next()
}

/// The interpreter of a virtual environment that holds onnx and onnxruntime, made when it is not there yet.
pub fn checkers() -> Result<PathBuf> {
    let venv = root().join("target/python");
    let interpreter = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let marker = venv.join("ready");
    let wanted = format!("{ONNXRUNTIME} {}", CHECKERS.join(" "));
    if std::fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
        return Ok(interpreter);
    }
    eprintln!("making target/python with {wanted}");
    run(Command::new(python()).args(["-m", "venv"]).arg(&venv))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", ONNXRUNTIME];
    run(Command::new(&interpreter).args(pip).args(CHECKERS))?;
    if !interpreter.exists() {
        bail!("{} was not made", interpreter.display());
    }
    std::fs::write(&marker, wanted)?;
    Ok(interpreter)
}
