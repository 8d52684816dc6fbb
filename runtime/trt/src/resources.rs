//! The builder's kernels, which TensorRT loads while it works.
//!
//! It asks the system's loader for them by bare name (`libnvinfer_builder_resource.so.10.6.0`), and their own name
//! inside is another, so it does not help to have loaded them before. Their folder has to be on the loader's path, and
//! that is read when a program starts.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use crate::{Error, Library};

const LOADER_PATH: &str = "LD_LIBRARY_PATH";
const STEM: &str = "libnvinfer_builder_resource";

impl Library {
    /// Makes sure that a builder finds its kernels. Where the folder of TensorRT is not on the system loader's path,
    /// this starts the program anew in its own place, with the same arguments and the folder on the path, and does not
    /// return: call it before anything else has begun.
    ///
    /// # Errors
    /// The program cannot be started anew.
    pub fn reach_resources(&self) -> Result<(), Error> {
        let Some(folder) = self.path().parent().filter(|_| self.is_by_path()) else { return Ok(()) };
        let Some(path) = loader_path(folder, std::env::var_os(LOADER_PATH).as_deref()) else { return Ok(()) };
        let cause = std::env::current_exe().map(|program| {
            let mut again = Command::new(program);
            again.args(std::env::args_os().skip(1)).env(LOADER_PATH, path);
            replace(&mut again)
        });
        let cause = cause.unwrap_or_else(|error| error);
        Err(Error::Unusable {
            path: folder.join(STEM),
            cause: format!(
                "the program cannot be started with its folder on {LOADER_PATH} ({cause}); set that and start it again"
            ),
        })
    }
}

/// The loader's path with a folder of builder's kernels before it; none where it is on it, or holds no such kernels.
fn loader_path(folder: &Path, now: Option<&OsStr>) -> Option<OsString> {
    let is_resource = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(STEM);
    if !std::fs::read_dir(folder).ok()?.flatten().any(is_resource) {
        return None;
    }
    let now = now.unwrap_or_default();
    let same = |entry: &Path| {
        entry.canonicalize().is_ok_and(|entry| folder.canonicalize().is_ok_and(|f| f == entry))
    };
    if std::env::split_paths(now).any(|entry| same(&entry)) {
        return None;
    }
    let before = std::iter::once(folder.to_path_buf());
    // Empty entries stand for the folder where one is: none shall come in by accident.
    let rest = std::env::split_paths(now).filter(|entry| !entry.as_os_str().is_empty());
    std::env::join_paths(before.chain(rest)).ok()
}

/// Becomes another program; returns only if that fails.
#[cfg(unix)]
fn replace(program: &mut Command) -> std::io::Error {
    std::os::unix::process::CommandExt::exec(program)
}

#[cfg(not(unix))]
fn replace(_: &mut Command) -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_kernels_comes_first_once() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        assert_eq!(loader_path(here, None), None);
        std::fs::write(here.join("libnvinfer_builder_resource.so.10.6.0"), "").unwrap();
        assert_eq!(loader_path(here, None).unwrap(), here.as_os_str());
        let mut both = here.as_os_str().to_owned();
        both.push(":/usr/lib");
        assert_eq!(loader_path(here, Some(OsStr::new("/usr/lib"))).unwrap(), both);
        assert_eq!(loader_path(here, Some(OsStr::new("/usr/lib:"))).unwrap(), both);
        assert_eq!(loader_path(here, Some(&both)), None);
        assert_eq!(loader_path(&here.join("nowhere"), None), None);
    }
}
