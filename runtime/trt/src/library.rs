//! TensorRT, found and loaded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::Raw;
use crate::places::{INFER, MAJORS, PARSER, root};
use crate::shim::{c_path, text};
use crate::{Error, Places, Shim, Version};

/// TensorRT, loaded through the shim of its major version; cheap to clone.
#[derive(Clone, Debug)]
pub struct Library {
    pub(crate) handle: Arc<Handle>,
}

#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shim: Shim,
    pub(crate) raw: Raw,
    path: PathBuf,
    version: Version,
    given: Option<PathBuf>,
    /// Whether it was loaded by a path, and not found by the system's loader.
    by_path: bool,
    /// Whether the parser is loaded.
    parser: Mutex<bool>,
}

// SAFETY: the shim's library is constant but for the parser's address, which is written under the lock of
// `parser` before the first builder reads it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `library_open`, and everything that uses it holds this value.
        unsafe { (self.shim.api.library_destroy)(self.raw) }
    }
}

impl Library {
    /// Loads TensorRT 11 or else 10, each with its shim.
    ///
    /// # Errors
    /// No library or no shim for it (saying where they were looked for), a version that is not supported, or
    /// one that cannot be loaded.
    pub fn load(places: &Places<'_>) -> Result<Library, Error> {
        Library::load_with(places, root().as_deref())
    }

    fn load_with(places: &Places<'_>, root: Option<&Path>) -> Result<Library, Error> {
        let mut errors = Vec::new();
        for major in MAJORS {
            match Library::load_major(places, root, major) {
                Ok(library) => return Ok(library),
                Err(error) => errors.push((major, error)),
            }
        }
        Err(telling(errors))
    }

    fn load_major(places: &Places<'_>, root: Option<&Path>, major: i32) -> Result<Library, Error> {
        let shim = places.shim(major)?;
        let found = places.tensorrt(INFER, major, root);
        let by_path = found.file.as_ref().is_some_and(|file| file.is_absolute());
        let mut raw: Raw = std::ptr::null_mut();
        found.open(|file| {
            let path = c_path(file)?;
            // SAFETY: a string and a place for a handle that both outlive the call.
            shim.check(unsafe { (shim.api.library_open)(path.as_ptr(), &raw mut raw) })
        })?;
        // SAFETY: the handle was just made; its path is copied.
        let (path, number) = unsafe { (text((shim.api.library_path)(raw)), (shim.api.library_version)(raw)) };
        let handle = Handle {
            shim,
            raw,
            path: PathBuf::from(path),
            version: Version::from_number(number),
            given: places.tensorrt.map(Path::to_path_buf),
            by_path,
            parser: Mutex::new(false),
        };
        Ok(Library { handle: Arc::new(handle) })
    }

    /// The shim in use.
    pub fn shim(&self) -> Shim {
        self.handle.shim
    }

    /// Version of the library.
    pub fn version(&self) -> Version {
        self.handle.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    pub(crate) fn is_by_path(&self) -> bool {
        self.handle.by_path
    }

    /// Loads the ONNX parser, once: what only runs engines does not need it.
    pub(crate) fn open_parser(&self) -> Result<(), Error> {
        let mut opened = self.handle.parser.lock().unwrap_or_else(PoisonError::into_inner);
        if *opened {
            return Ok(());
        }
        let major = self.handle.version.major;
        let given = self.handle.given.as_deref();
        let mut found = Places { shim: None, tensorrt: given }.tensorrt(PARSER, major, root().as_deref());
        // Beside the library, wherever that was found, rather than another installation's.
        let beside = self.handle.path.with_file_name(&found.name);
        if beside.is_file() {
            found.file = Some(beside);
        }
        let shim = self.handle.shim;
        found.open(|file| {
            let path = c_path(file)?;
            // SAFETY: a live handle and a string that outlives the call; the lock keeps others out.
            shim.check(unsafe { (shim.api.library_open_parser)(self.handle.raw, path.as_ptr()) })
        })?;
        *opened = true;
        Ok(())
    }
}

/// The error that helps most, of those of all majors.
fn telling(mut errors: Vec<(i32, Error)>) -> Error {
    // A library that is there, of a major whose shim is not.
    let found = errors.iter().find_map(|(_, error)| match error {
        Error::Version { found, .. } => Some(found.major),
        _ => None,
    });
    // Then one that is there and unusable, then one that is nowhere: of those the oldest is the one to be
    // installed.
    let rank = |(major, error): &(i32, Error)| match error {
        Error::Missing { name, .. } if Some(*major) == found && name.starts_with("libturbo_trt") => 0,
        Error::Version { found, .. } if found.major == *major => 1,
        Error::Unusable { .. } | Error::Abi { .. } => 2,
        Error::Version { .. } => 3,
        Error::Missing { name, .. } if name.starts_with(INFER) => 4,
        _ => 5,
    };
    errors.sort_by_key(|entry| (rank(entry), entry.0));
    match errors.into_iter().next() {
        Some((_, error)) => error,
        None => Error::Internal("no version of TensorRT was looked for".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(name: &str) -> Error {
        Error::Missing { name: name.to_string(), looked: Vec::new(), system: false }
    }

    fn version(number: i32) -> Error {
        Error::Version { path: PathBuf::from("lib"), found: Version::from_number(number) }
    }

    #[test]
    fn the_error_that_helps_most_is_told() {
        let told = |errors| telling(errors).to_string();
        // TensorRT 10 is there, its shim is not.
        let text = told(vec![(11, version(100_600)), (10, missing("libturbo_trt-10.so"))]);
        assert!(text.contains("libturbo_trt-10.so was not found"), "{text}");
        // One that is too old.
        let text = told(vec![(11, missing("libturbo_trt-11.so")), (10, version(100_300))]);
        assert!(text.contains("TensorRT 10.3.0, which is not supported"), "{text}");
        let text = told(vec![(11, version(8601)), (10, version(8601))]);
        assert!(text.contains("TensorRT 8.6.1"), "{text}");
        // Nothing is there.
        let text = told(vec![(11, missing("libnvinfer.so.11")), (10, missing("libnvinfer.so.10"))]);
        assert!(text.contains("libnvinfer.so.10 was not found") && text.contains("TENSORRT_ROOT"), "{text}");
        // TensorRT itself is looked for only through a shim.
        let text = told(vec![(11, missing("libturbo_trt-11.so")), (10, missing("libnvinfer.so.10"))]);
        assert!(text.contains("libnvinfer.so.10 was not found"), "{text}");
        let broken =
            Error::Unusable { path: PathBuf::from("libnvinfer.so.10"), cause: "too short".to_string() };
        let text = told(vec![(11, missing("libnvinfer.so.11")), (10, broken)]);
        assert!(text.contains("too short"), "{text}");
    }
}
