//! The shim, loaded; and how its failures become errors.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::api::{self, Api, Raw, code};
use crate::{Error, Version};

/// The loaded shim; copies are free.
///
/// It stays loaded until the process ends: CUDA's runtime inside it does not survive being unloaded.
#[derive(Clone, Copy)]
pub struct Shim {
    pub(crate) api: &'static Api,
    path: &'static Path,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("tensorrt", &self.tensorrt()).finish()
    }
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warning,
    /// What is done.
    Info,
    /// Everything.
    Verbose,
}

/// One line of TensorRT's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its importance.
    pub level: Level,
    /// The line.
    pub text: String,
}

impl Shim {
    /// Loads a shim from its file.
    ///
    /// # Errors
    /// A file that cannot be loaded, or is not the shim of this program.
    pub fn load(path: &Path) -> Result<Shim, Error> {
        let unusable =
            |cause: libloading::Error| Error::Unusable { path: path.to_path_buf(), cause: said(&cause) };
        // SAFETY: loading runs the library's initialisers; the shim's register CUDA kernels and have no
        // requirements.
        let library = unsafe { Library::new(path) }.map_err(unusable)?;
        // SAFETY: every version of the shim exports this function with this signature.
        let abi =
            unsafe { library.get::<unsafe extern "C" fn() -> i32>("turbo_trt_abi") }.map_err(unusable)?;
        // SAFETY: it takes nothing and returns a constant.
        let found = unsafe { abi() };
        if found != api::ABI {
            return Err(Error::Abi { path: path.to_path_buf(), found, expected: api::ABI });
        }
        // SAFETY: the version says that this is the shim that `api` describes; it is never unloaded.
        let api = unsafe { Api::load(&library) }.map_err(unusable)?;
        std::mem::forget(library);
        Ok(Shim { api: Box::leak(Box::new(api)), path: Box::leak(path.into()) })
    }

    /// The file that it was loaded from.
    pub fn path(self) -> &'static Path {
        self.path
    }

    /// Major version of TensorRT that it was compiled for.
    pub fn tensorrt(self) -> i32 {
        // SAFETY: takes nothing and returns a constant.
        unsafe { (self.api.major)() }
    }

    /// Keeps lines up to this level; warnings at first.
    pub fn set_log_level(self, level: Level) {
        let level = match level {
            Level::Error => 0,
            Level::Warning => 1,
            Level::Info => 2,
            Level::Verbose => 3,
        };
        // SAFETY: any number is a level.
        unsafe { (self.api.log_level)(level) }
    }

    /// TensorRT's lines since they were last taken, of all threads. An error takes them too.
    pub fn take_log(self) -> Vec<LogLine> {
        let mut lines: Vec<LogLine> = Vec::new();
        // SAFETY: `push_line` gets the pointer to `lines`, which outlives the call.
        unsafe { (self.api.log_take)(push_line, (&raw mut lines).cast()) }
        lines
    }

    /// Turns a code of the shim into a result.
    pub(crate) fn check(self, code: i32) -> Result<(), Error> {
        if code == code::OK { Ok(()) } else { Err(self.error(code, 0)) }
    }

    /// As [`Shim::check`], for calls that allocate `asked` bytes.
    pub(crate) fn check_memory(self, code: i32, asked: usize) -> Result<(), Error> {
        if code == code::OK { Ok(()) } else { Err(self.error(code, asked as u64)) }
    }

    /// The error behind the last call's code; that call was this thread's.
    fn error(self, code: i32, asked: u64) -> Error {
        // SAFETY: the strings live until this thread's next failing call; they are copied at once.
        let (subject, cause) = unsafe { (text((self.api.error_subject)()), text((self.api.error_text)())) };
        let name = (!subject.is_empty()).then(|| subject.clone());
        match code {
            code::LIBRARY => Error::Unusable { path: PathBuf::from(subject), cause },
            code::VERSION => Error::Version {
                path: PathBuf::from(subject),
                found: Version::from_number(cause.parse().unwrap_or(0)),
            },
            code::PLUGINS => Error::Plugins { path: PathBuf::from(subject), cause, log: self.complaints() },
            code::PARSE => Error::Parse { cause, log: self.complaints() },
            code::BUILD => Error::Build { cause, log: self.complaints() },
            code::INTERRUPTED => Error::Interrupted,
            code::ENGINE => Error::Engine { tensor: name, cause, log: self.complaints() },
            code::REFIT => Error::Refit { weight: name, cause, log: self.complaints() },
            code::RUN => Error::Run { tensor: name, cause, log: self.complaints() },
            code::CUDA => Error::Cuda { call: subject, text: cause },
            code::MEMORY => {
                let info = self.memory().unwrap_or_default();
                Error::OutOfMemory { call: subject, asked, free: info.free, total: info.total }
            }
            _ => Error::Internal(cause),
        }
    }

    /// The warnings and errors of the log.
    pub(crate) fn complaints(self) -> Vec<String> {
        let lines = self.take_log().into_iter();
        lines.filter(|line| line.level <= Level::Warning).map(|line| line.text).collect()
    }
}

/// The loader's own words, which libloading keeps as the source.
fn said(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// A copy of a C string; nothing for null.
///
/// # Safety
/// Null, or a string that lives during the call.
pub(crate) unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller says that it is a live string.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

pub(crate) fn c_name(name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| Error::Name { name: name.to_string() })
}

pub(crate) fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::Name { name: path.display().to_string() })
}

unsafe extern "C" fn push_line(user: Raw, level: i32, line: *const c_char) {
    let level = match level {
        0 => Level::Error,
        1 => Level::Warning,
        2 => Level::Info,
        _ => Level::Verbose,
    };
    // SAFETY: `take_log` passes a pointer to its list, which nothing else uses meanwhile; the line lives
    // during the call.
    unsafe { (*user.cast::<Vec<LogLine>>()).push(LogLine { level, text: text(line) }) }
}
