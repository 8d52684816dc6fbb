//! Where the shim and TensorRT's libraries may lie.

use std::path::{Path, PathBuf};

use crate::{Error, Shim};

/// Majors of TensorRT that there are shims for, the preferred one first.
pub(crate) const MAJORS: [i32; 2] = [11, 10];

/// Places that the user gave. What is absent is looked for in the usual places.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places<'a> {
    /// Folder of the shims. Else beside the command, in `../lib`, or in `gpu/lib` of a folder above (where a
    /// development tree builds them).
    pub shim: Option<&'a Path>,
    /// `libnvinfer` or its folder. Else `TENSORRT_ROOT` or its `lib`, else what the system's loader finds.
    pub tensorrt: Option<&'a Path>,
}

impl Places<'_> {
    /// Any shim: enough to ask about GPUs and to use CUDA, without TensorRT.
    ///
    /// # Errors
    /// No shim, or one that cannot be loaded.
    pub fn any_shim(&self) -> Result<Shim, Error> {
        let mut first = None;
        for major in MAJORS {
            match self.shim(major) {
                Ok(shim) => return Ok(shim),
                // One that is there and broken is worth more words than one that is absent.
                Err(error) if first.is_none() || !matches!(error, Error::Missing { .. }) => {
                    first = Some(error)
                }
                Err(_) => {}
            }
        }
        Err(first.unwrap_or_else(|| Error::Internal("no shim was looked for".to_string())))
    }

    /// The shim for a major version.
    pub(crate) fn shim(&self, major: i32) -> Result<Shim, Error> {
        let name = format!("libturbo_trt-{major}.so");
        let looked = match self.shim {
            Some(folder) => vec![folder.to_path_buf()],
            None => usual_folders(),
        };
        match looked.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()) {
            // Absolute, because the system's loader looks for a bare name elsewhere.
            Some(path) => Shim::load(&path.canonicalize().unwrap_or(path)),
            None => Err(Error::Missing { name, looked, system: false }),
        }
    }

    /// The file of a library of TensorRT such as `libnvinfer`: absolute, or a bare name for the system's
    /// loader.
    pub(crate) fn tensorrt(&self, stem: &str, major: i32, root: Option<&Path>) -> Found {
        let name = format!("{stem}.so.{major}");
        if let Some(given) = self.tensorrt {
            // A file is taken by whatever name it has; the parser lies beside it.
            let file = if stem == INFER && given.is_file() {
                given.to_path_buf()
            } else if given.is_file() {
                given.parent().unwrap_or(Path::new("")).join(&name)
            } else {
                given.join(&name)
            };
            return Found { name, file: file.canonicalize().ok(), looked: vec![file], system: false };
        }
        let folders = root.map(|root| vec![root.to_path_buf(), root.join("lib")]).unwrap_or_default();
        let there = folders.iter().find_map(|folder| folder.join(&name).canonicalize().ok());
        let file = there.unwrap_or_else(|| PathBuf::from(&name));
        Found { name, file: Some(file), looked: folders, system: true }
    }
}

/// Stem of the library itself.
pub(crate) const INFER: &str = "libnvinfer";
/// Stem of the ONNX parser.
pub(crate) const PARSER: &str = "libnvonnxparser";

/// What a search gave.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) file: Option<PathBuf>,
    pub(crate) looked: Vec<PathBuf>,
    pub(crate) system: bool,
}

impl Found {
    /// Hands the file to the loader.
    pub(crate) fn open(self, load: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        let Some(file) = &self.file else { return Err(self.missing()) };
        match load(file) {
            // A bare name that the loader does not find is absent, not broken; a library that it misses is
            // another.
            Err(Error::Unusable { cause, .. })
                if file.is_relative() && cause.starts_with(&self.name) && cause.contains("No such file") =>
            {
                Err(self.missing())
            }
            other => other,
        }
    }

    fn missing(self) -> Error {
        Error::Missing { name: self.name, looked: self.looked, system: self.system }
    }
}

/// `TENSORRT_ROOT`, unless empty.
pub(crate) fn root() -> Option<PathBuf> {
    std::env::var_os("TENSORRT_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from)
}

fn usual_folders() -> Vec<PathBuf> {
    let Some(here) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) else {
        return Vec::new();
    };
    let mut folders = vec![here.clone()];
    folders.extend(here.parent().map(|above| above.join("lib")));
    // Above target/release/turbo-run and target/release/deps/test-binary lies target/gpu.
    folders.extend(here.ancestors().take(3).map(|above| above.join("gpu/lib")));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_shim_is_named_with_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = Places { shim: Some(folder.path()), tensorrt: None }.any_shim().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Missing { .. }), "{text}");
        assert!(text.contains("libturbo_trt-11.so was not found"), "{text}");
        assert!(text.contains(&folder.path().display().to_string()) && text.contains("hint: "), "{text}");
    }

    #[test]
    fn a_broken_shim_is_named_rather_than_a_missing_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libturbo_trt-10.so"), "no library").unwrap();
        let error = Places { shim: Some(folder.path()), tensorrt: None }.any_shim().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unusable { .. }) && text.contains("libturbo_trt-10.so"), "{text}");
    }

    #[test]
    fn a_given_folder_or_file_is_the_only_place() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let places = Places { shim: None, tensorrt: Some(&folder) };
        let none = places.tensorrt(INFER, 10, Some(Path::new("/elsewhere")));
        assert!(none.file.is_none() && !none.system, "{none:?}");
        assert_eq!(none.looked, [folder.join("libnvinfer.so.10")]);
        for name in ["libnvinfer.so.10", "libnvonnxparser.so.10", "libnvinfer.so.10.6.0"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(places.tensorrt(INFER, 10, None).file, Some(folder.join("libnvinfer.so.10")));
        assert_eq!(places.tensorrt(INFER, 11, None).file, None);
        let file = folder.join("libnvinfer.so.10.6.0");
        let places = Places { shim: None, tensorrt: Some(&file) };
        assert_eq!(places.tensorrt(INFER, 11, None).file, Some(file.clone()));
        assert_eq!(places.tensorrt(PARSER, 10, None).file, Some(folder.join("libnvonnxparser.so.10")));
    }

    #[test]
    fn absent_is_told_from_broken() {
        let says = |cause: &str| {
            let found = Places::default().tensorrt(INFER, 10, None);
            let path = PathBuf::from("libnvinfer.so.10");
            found.open(|_| Err(Error::Unusable { path, cause: cause.to_string() })).unwrap_err()
        };
        let absent = says("libnvinfer.so.10: cannot open shared object file: No such file or directory");
        assert!(matches!(absent, Error::Missing { system: true, .. }), "{absent}");
        let needs = says("libother.so.1: cannot open shared object file: No such file or directory");
        assert!(matches!(needs, Error::Unusable { .. }) && needs.to_string().contains("libother"), "{needs}");
    }

    #[test]
    fn the_root_comes_before_the_system() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let found = Places::default().tensorrt(INFER, 10, Some(&root));
        assert_eq!(found.file, Some(PathBuf::from("libnvinfer.so.10")));
        std::fs::create_dir(root.join("lib")).unwrap();
        std::fs::write(root.join("lib/libnvinfer.so.10"), "").unwrap();
        let found = Places::default().tensorrt(INFER, 10, Some(&root));
        assert_eq!(found.file, Some(root.join("lib/libnvinfer.so.10")));
        assert_eq!(found.looked, [root.clone(), root.join("lib")]);
        assert!(found.system);
    }
}
