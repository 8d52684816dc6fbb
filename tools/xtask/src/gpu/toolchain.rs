//! What compiles the GPU libraries: an installed CUDA, or nvcc out of Python wheels; TensorRT's headers out of crates
//! that carry them, or of an installed TensorRT. Neither a GPU nor TensorRT's libraries are needed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cargo, python, root, run};

/// nvcc with its headers and libraries, and CUTLASS's headers. Packages that others pull in are named too: nothing is
/// installed that is not pinned here.
const WHEELS: [&str; 6] = [
    "nvidia-cuda-nvcc==13.5.37",
    "nvidia-nvvm==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-cccl==13.3.5.0.6",
    "nvidia-cutlass==4.2.0.0",
];

/// Oldest CUDA that compiles for compute capability 12.0.
const OLDEST: (u32, u32) = (12, 8);

/// The crate that carries TensorRT's headers, and its version for each major version of TensorRT.
const HEADERS: &str = "trtx-sys";
const HEADERS_VERSIONS: [(u32, &str); 2] = [(10, "0.5.0"), (11, "0.9.1")];

/// Where Debian's packages put TensorRT's headers.
const SYSTEM: [&str; 2] = ["/usr/include/x86_64-linux-gnu", "/usr/include"];

/// What `cargo xtask gpu` compiles with.
pub struct Toolchain {
    pub nvcc: PathBuf,
    pub tensorrt: Vec<Headers>,
}

/// TensorRT's headers.
pub struct Headers {
    pub major: u32,
    pub include: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.nvcc.display())?;
        self.tensorrt.iter().try_for_each(|headers| write!(f, "\n{}", headers.include.display()))
    }
}

/// Finds the toolchain, and fetches under target/toolchain what is not installed.
pub fn toolchain() -> Result<Toolchain> {
    let folder = root().join("target/toolchain");
    let nvcc = match installed_nvcc() {
        Some(nvcc) => nvcc,
        None => fetched_nvcc(&folder.join("cuda"))?,
    };
    let tensorrt: Result<Vec<Headers>> = match std::env::var_os("TENSORRT_ROOT") {
        Some(roots) => {
            std::env::split_paths(&roots).map(|root| installed_headers(&root.join("include"))).collect()
        }
        None => {
            let installed = |major| {
                let found = SYSTEM.iter().flat_map(|place| installed_headers(Path::new(place)));
                found.into_iter().find(|headers| headers.major == major)
            };
            let headers = HEADERS_VERSIONS.iter().map(|&(major, version)| match installed(major) {
                Some(headers) => Ok(headers),
                None => fetched_headers(&folder, major, version),
            });
            headers.collect()
        }
    };
    Ok(Toolchain { nvcc, tensorrt: tensorrt? })
}

/// nvcc of `CUDA_HOME` or `CUDA_PATH`, or on the path, if it is new enough.
fn installed_nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> = homes.map(|home| PathBuf::from(home).join("bin")).collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut found = folders.iter().map(|folder| folder.join("nvcc")).filter(|nvcc| nvcc.is_file());
    found.find(|nvcc| version(nvcc).is_some_and(|version| version >= OLDEST))
}

/// "release 13.5," in what `nvcc --version` says.
fn version(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (major, rest) = text.split_once("release ")?.1.split_once('.')?;
    Some((major.parse().ok()?, rest.split(',').next()?.parse().ok()?))
}

/// nvcc out of the wheels.
fn fetched_nvcc(folder: &Path) -> Result<PathBuf> {
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    let marker = folder.join("ready");
    let wanted = WHEELS.join(" ");
    if std::fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
        return Ok(nvcc);
    }
    eprintln!("fetching nvcc ({wanted})");
    remove(folder)?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let exactly = ["--no-deps", "--only-binary=:all:", "--target"];
    run(Command::new(python::python()).args(pip).args(exactly).arg(folder).args(WHEELS))
        .context("install CUDA 12.8 or newer, or Python 3 with pip, which fetches nvcc once")?;
    ensure!(version(&nvcc).is_some(), "{} does not run", nvcc.display());
    std::fs::write(&marker, wanted)?;
    Ok(nvcc)
}

/// Headers out of the crate of that version.
fn fetched_headers(folder: &Path, major: u32, version: &str) -> Result<Headers> {
    let target = folder.join(format!("tensorrt-{major}"));
    let include = target.join("include");
    if include.is_dir() {
        return Ok(Headers { major, include });
    }
    eprintln!("fetching TensorRT's headers ({HEADERS} {version})");
    remove(&target)?;
    let source = fetched_crate(&target.join("crate"), version)?.join("TensorRT-Headers");
    let enterprise = std::fs::read_dir(&source)
        .with_context(|| format!("cannot list {}", source.display()))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("TRT-Enterprise-"))
        .with_context(|| format!("{} holds no headers of TensorRT", source.display()))?;
    // Under their name only when all files are there.
    let part = target.join("part");
    std::fs::create_dir_all(&part)?;
    for file in std::fs::read_dir(enterprise.path())?.flatten().filter(|e| e.path().is_file()) {
        std::fs::copy(file.path(), part.join(file.file_name()))?;
    }
    std::fs::rename(&part, &include)?;
    Ok(Headers { major, include })
}

/// Where cargo unpacked the crate of headers, a dependency of an empty crate in that folder.
fn fetched_crate(folder: &Path, version: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder.join("src"))?;
    std::fs::write(folder.join("src/lib.rs"), "")?;
    let manifest = folder.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"headers\"\nedition = \"2024\"\n\n\
         [dependencies]\n{HEADERS} = {{ version = \"={version}\", default-features = false }}\n\n[workspace]\n"
    );
    std::fs::write(&manifest, text)?;
    run(cargo(&["fetch", "--quiet", "--manifest-path"]).arg(&manifest))?;
    let metadata = ["metadata", "--format-version=1", "--offline", "--manifest-path"];
    let metadata = cargo(&metadata).arg(&manifest).output()?;
    ensure!(metadata.status.success(), "cargo metadata failed for {}", manifest.display());
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let package = metadata["packages"].as_array().into_iter().flatten().find(|p| p["name"] == HEADERS);
    let package = package.and_then(|package| Path::new(package["manifest_path"].as_str()?).parent());
    Ok(package.context("cargo fetched no headers")?.to_path_buf())
}

/// Headers of an installed TensorRT, with the major version that they state.
fn installed_headers(include: &Path) -> Result<Headers> {
    let file = include.join("NvInferVersion.h");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let major = text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().take(3).collect();
        match words[..] {
            ["#define", "NV_TENSORRT_MAJOR" | "TRT_MAJOR_ENTERPRISE", number] => number.parse().ok(),
            _ => None,
        }
    });
    let major = major.with_context(|| format!("{} states no major version", file.display()))?;
    Ok(Headers { major, include: include.to_path_buf() })
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_headers_state_their_version() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("NvInferVersion.h");
        assert!(installed_headers(folder.path()).is_err());
        for (text, major) in [
            ("#define NV_TENSORRT_MAJOR 10 //!< major\n", Some(10)),
            ("#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n", Some(11)),
            ("nothing\n", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(installed_headers(folder.path()).ok().map(|headers| headers.major), major);
        }
    }
}
