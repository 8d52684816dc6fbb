//! The shim without a GPU and without TensorRT: what is missing is said.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use std::path::{Path, PathBuf};

use turbo_trt::{Error, Library, Places, Shim};

/// The shims of this build, if the CUDA parts were built.
fn shims() -> Vec<PathBuf> {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).unwrap();
    let name = |major: i32| target.join(format!("gpu/lib/libturbo_trt-{major}.so"));
    let found: Vec<PathBuf> = [10, 11].map(name).into_iter().filter(|path| path.is_file()).collect();
    if found.is_empty() {
        println!("skipped: no shim in {}", target.join("gpu/lib").display());
    }
    found
}

fn folder_with(shim: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(shim, folder.path().join(shim.file_name().unwrap())).unwrap();
    folder
}

fn load(shim: &Path, tensorrt: &Path) -> Error {
    let folder = folder_with(shim);
    Library::load(&Places { shim: Some(folder.path()), tensorrt: Some(tensorrt) }).unwrap_err()
}

fn major(shim: &Path) -> &'static str {
    if shim.ends_with("libturbo_trt-10.so") { "10" } else { "11" }
}

#[test]
fn every_shim_loads_and_is_of_its_major() {
    for path in shims() {
        let shim = Shim::load(&path).unwrap();
        assert_eq!(shim.tensorrt().to_string(), major(&path));
        assert!(shim.take_log().is_empty());
    }
}

#[test]
fn a_library_that_is_no_shim_is_refused() {
    let error = Shim::load(Path::new("libc.so.6")).unwrap_err();
    assert!(
        matches!(error, Error::Unusable { .. }) && error.to_string().contains("turbo_trt_abi"),
        "{error}"
    );
    let error = Shim::load(Path::new("/nonexistent/libturbo_trt-10.so")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/libturbo_trt-10.so"), "{error}");
}

#[test]
fn tensorrt_that_is_missing_is_named_with_where_it_was_looked_for() {
    for shim in shims() {
        let folder = tempfile::tempdir().unwrap();
        let error = load(&shim, folder.path());
        let text = error.to_string();
        let name = format!("libnvinfer.so.{}", major(&shim));
        assert!(matches!(&error, Error::Missing { name: found, .. } if *found == name), "{text}");
        assert!(text.contains(&folder.path().display().to_string()) && text.contains("--tensorrt"), "{text}");
    }
}

#[test]
fn something_else_in_the_place_of_tensorrt_is_refused() {
    for shim in shims() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join(format!("libnvinfer.so.{}", major(&shim)));
        std::fs::write(
            &name,
            "not a library, but longer than the header of one, so that it is read".repeat(9),
        )
        .unwrap();
        let error = load(&shim, folder.path());
        assert!(
            matches!(error, Error::Unusable { .. }) && error.to_string().contains("libnvinfer"),
            "{error}"
        );
        // A library, but another.
        std::fs::remove_file(&name).unwrap();
        std::fs::copy(&shim, &name).unwrap();
        let error = load(&shim, folder.path());
        assert!(error.to_string().contains("does not export getInferLibVersion"), "{error}");
    }
}

#[test]
fn no_gpu_is_an_error_and_no_crash() {
    for path in shims() {
        match Shim::load(&path).unwrap().gpu_count() {
            Ok(count) => assert!(count > 0),
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::NoGpu(_)) && text.contains("\nhint: "), "{text}");
            }
        }
    }
}
