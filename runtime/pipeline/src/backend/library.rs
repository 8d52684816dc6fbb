//! Finds and loads ONNX Runtime.

use std::ffi::CStr;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use super::BackendError;

/// ONNX Runtime, loaded; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    pub(super) threads: usize,
    version: String,
}

/// The one ONNX Runtime that a process can hold.
struct Loaded {
    path: PathBuf,
    environment: Environment,
    version: String,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

const NAME: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// Loads ONNX Runtime: the given library (or the one in the given folder), else `ORT_DYLIB_PATH`, else one beside
/// the command, in `../lib` or in `onnxruntime/` of a folder above it (where a development tree keeps it), else
/// what the system's loader finds.
///
/// `threads` bounds both ONNX Runtime's and the ops' threads; all cores when absent. `ORT_LOG` (`warning`,
/// `info`, `verbose`) makes ONNX Runtime write to the standard error output, which it otherwise leaves alone.
///
/// # Errors
/// No library (saying where it was looked for), one that cannot be loaded or is too old, or another one loaded
/// before in this process.
pub fn init(library: Option<&Path>, threads: Option<usize>) -> Result<Runtime, BackendError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(before), Some(given)) = (loaded.as_ref(), library) {
        let asked = locate(given)?;
        if absolute(&asked) != absolute(&before.path) {
            return Err(BackendError::AlreadyLoaded { loaded: before.path.clone(), asked });
        }
    }
    if loaded.is_none() {
        *loaded = Some(load(library)?);
    }
    let Some(Loaded { environment, version, .. }) = loaded.as_ref() else {
        return Err(BackendError::Other("the library was not kept".to_string()));
    };
    if let Some(threads) = threads {
        // Fails when the pool is there already, which then stays as it is.
        drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
    }
    // A number, even where it is the default: without one ONNX Runtime counts physical cores and pins its
    // threads to them, under the ops' own threads.
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.filter(|&n| n > 0).unwrap_or_else(cores);
    Ok(Runtime { environment: environment.clone(), threads, version: version.clone() })
}

impl Runtime {
    /// Version of the library, such as `1.27.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Threads of a session.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The library's environment, for sessions that are none of ours: what benchmarks compare with.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

fn load(library: Option<&Path>) -> Result<Loaded, BackendError> {
    let path = find(library)?;
    let unusable = |cause: String| BackendError::Unusable { path: path.clone(), cause };
    let version = version(&path).map_err(unusable)?;
    if !is_new_enough(&version) {
        return Err(BackendError::TooOld { path, version });
    }
    let build = || {
        let builder = ort::init_from(&path).map_err(|e| e.to_string())?;
        let environment =
            builder.with_name("turbo").with_telemetry(false).build().map_err(|e| e.to_string())?;
        if std::env::var_os("ORT_LOG").is_none() {
            // Its errors come back as values.
            environment.set_log_level(ort::logging::LogLevel::Fatal);
        }
        Ok(environment)
    };
    // `ort` asserts what it expects of a library.
    let environment = catch_unwind(build).unwrap_or_else(|_| Err("it is not ONNX Runtime's API".to_string()));
    let environment = environment.map_err(unusable)?;
    Ok(Loaded { path, environment, version })
}

/// Asks a library for its version, before `ort` relies on it.
fn version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers; it is the library that the user chose or installed, and
    // ONNX Runtime's have no requirements.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    // SAFETY: this is the signature that every ONNX Runtime exports under this name.
    let base =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
            .map_err(|_| "it does not export OrtGetApiBase".to_string())?;
    // SAFETY: the function takes nothing and gives a static table, checked for null before it is read, whose
    // version is a static C string. The library is still loaded.
    let version = unsafe {
        match base().as_ref() {
            Some(base) => CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned(),
            None => return Err("it offers no API".to_string()),
        }
    };
    // Kept loaded: unloading and loading again is where ONNX Runtime's thread-local state breaks.
    std::mem::forget(library);
    Ok(version)
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    numbers.next() == Some(1) && numbers.next().unwrap_or(0) >= ort::MINOR_VERSION
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

fn find(given: Option<&Path>) -> Result<PathBuf, BackendError> {
    if let Some(given) = given {
        return locate(given);
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return locate(Path::new(&path));
    }
    let mut looked = Vec::new();
    if let Some(here) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
        looked.push(here.clone());
        looked.extend(here.parent().map(|above| above.join("lib")));
        // Above target/release/turbo-run and target/release/deps/test-binary lies target/onnxruntime.
        looked.extend(here.ancestors().take(3).map(|above| above.join("onnxruntime")));
    }
    if let Some(found) = looked.iter().find_map(|folder| newest(folder)) {
        return Ok(found);
    }
    // A name without a folder is looked for by the system's loader.
    let name = PathBuf::from(NAME);
    match version(&name) {
        Ok(_) => Ok(name),
        Err(_) => Err(BackendError::NotFound { name: NAME, looked, system: true }),
    }
}

/// The library at a path that the user gave: a file, or a folder that holds one.
fn locate(given: &Path) -> Result<PathBuf, BackendError> {
    let found = match given.is_dir() {
        true => newest(given),
        // Absolute, because a bare name would be looked for by the system's loader and not here.
        false => given.canonicalize().ok(),
    };
    found.ok_or_else(|| BackendError::NotFound {
        name: NAME,
        looked: vec![given.to_path_buf()],
        system: false,
    })
}

/// The newest ONNX Runtime in a folder: `libonnxruntime.so`, `libonnxruntime.so.1.27.0`,
/// `libonnxruntime.1.27.0.dylib` or `onnxruntime.dll`.
fn newest(folder: &Path) -> Option<PathBuf> {
    let stem = NAME.split('.').next()?;
    let extension = NAME.rsplit('.').next()?;
    let versioned = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.strip_prefix(stem)?.strip_prefix('.')?.split('.');
        let numbers: Vec<u32> = parts.clone().filter_map(|part| part.parse().ok()).collect();
        let known = parts.all(|part| part == extension || part.parse::<u32>().is_ok());
        (known && path.is_file()).then_some((numbers, path))
    };
    std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| versioned(entry.path()))
        .max()
        .map(|found| found.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let versioned = |version: &str| match cfg!(target_os = "macos") {
            true => format!("libonnxruntime.{version}.dylib"),
            false => format!("{NAME}.{version}"),
        };
        assert_eq!(newest(folder.path()), None);
        let others =
            ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.40.0.debug", "onnxruntime.txt"];
        for name in others.map(str::to_string).into_iter().chain(["1.9.0", "1.27.1", "1.3"].map(versioned)) {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join(versioned("1.99.0"))).unwrap();
        assert_eq!(newest(folder.path()), Some(folder.path().join(versioned("1.27.1"))));
    }

    #[test]
    fn versions_compare_as_numbers() {
        let minor = ort::MINOR_VERSION;
        assert!(is_new_enough(&format!("1.{minor}.0")) && is_new_enough(&format!("1.{}.2", minor + 100)));
        for old in [&format!("1.{}.9", minor - 1), "1.3.0", "0.99.0", "2.0.0", "", "x.y", "1"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }

    #[test]
    fn a_path_without_a_library_says_where_and_what_helps() {
        let folder = tempfile::tempdir().unwrap();
        for given in [folder.path().to_path_buf(), folder.path().join("missing.so")] {
            let error = load(Some(&given)).map(|_| ()).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, BackendError::NotFound { .. }), "{text}");
            assert!(
                text.contains(&given.display().to_string()) && text.contains("pip install onnxruntime"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        std::fs::write(&path, b"\x7fELF but not for long").unwrap();
        let error = load(Some(&path)).map(|_| ()).unwrap_err();
        assert!(matches!(error, BackendError::Unusable { .. }), "{error}");
    }
}
