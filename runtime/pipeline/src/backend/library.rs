//! Finds and loads ONNX Runtime.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use super::BackendError;

/// ONNX Runtime, loaded.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    pub(super) threads: usize,
    version: String,
}

/// A process can hold one ONNX Runtime; this is where it came from.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

const NAME: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// Loads ONNX Runtime: the given library, else `ORT_DYLIB_PATH`, else one beside the command, in `../lib` or in
/// `onnxruntime/` above it (a development tree), else whatever the system's loader finds.
///
/// `threads` bounds both ONNX Runtime's and the ops' threads; all cores when absent.
///
/// # Errors
/// No library (saying where it was looked for), one that cannot be loaded or is too old, or another one loaded
/// before in this process.
pub fn init(library: Option<&Path>, threads: Option<usize>) -> Result<Runtime, BackendError> {
    let threads = threads.unwrap_or(0);
    if threads > 0 {
        // Fails when the pool is there already, which then stays as it is.
        drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
    }
    let other = |error: ort::Error| BackendError::Other(error.to_string());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let environment = match loaded.as_ref() {
        Some((path, _)) if library.is_some_and(|asked| asked != path) => {
            let asked = library.map(Path::to_path_buf).unwrap_or_default();
            return Err(BackendError::AlreadyLoaded { loaded: path.clone(), asked });
        }
        Some((_, environment)) => environment.clone(),
        None => {
            let path = find(library)?;
            let builder = ort::init_from(&path)
                .map_err(|error| BackendError::Unusable { path: path.clone(), cause: error.to_string() })?;
            let environment = builder.with_name("turbo").with_telemetry(false).build().map_err(other)?;
            environment.set_log_level(ort::logging::LogLevel::Error);
            *loaded = Some((path, environment.clone()));
            environment
        }
    };
    Ok(Runtime { environment, threads, version: version() })
}

impl Runtime {
    /// Version of the library, such as `1.27.0`.
    pub fn version(&self) -> &str {
        &self.version
    }
}

fn version() -> String {
    // SAFETY: the API base is a static table of the loaded library, and its version a static C string.
    let text = unsafe {
        let base = ort::sys::OrtGetApiBase();
        if base.is_null() {
            return String::new();
        }
        std::ffi::CStr::from_ptr(((*base).GetVersionString)())
    };
    text.to_string_lossy().into_owned()
}

fn find(given: Option<&Path>) -> Result<PathBuf, BackendError> {
    if let Some(path) = given {
        return match path.is_dir() {
            true => in_folder(path).ok_or_else(|| not_found(vec![path.to_path_buf()])),
            false => Ok(path.to_path_buf()),
        };
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let mut looked = Vec::new();
    if let Some(here) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
        looked.push(here.clone());
        looked.push(here.join("../lib"));
        // target/release/turbo-run and target/release/deps/test-binary of a development tree.
        looked.extend(here.ancestors().take(4).map(|dir| dir.join("onnxruntime")));
    }
    if let Some(found) = looked.iter().find_map(|dir| in_folder(dir)) {
        return Ok(found);
    }
    // The loader's own search path, where a file of exactly this name is installed.
    let system = ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/opt/homebrew/lib"];
    looked.extend(system.iter().map(PathBuf::from));
    looked.iter().find_map(|dir| in_folder(dir)).ok_or_else(|| not_found(looked))
}

fn not_found(looked: Vec<PathBuf>) -> BackendError {
    BackendError::NotFound { name: NAME, looked }
}

/// The library in a folder, with or without a version after its name.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == NAME || (name.starts_with("libonnxruntime.") && !name.ends_with(".debug"))
        })
        .collect();
    found.sort();
    found.into_iter().next_back()
}
