//! A writer that fails says why and leaves nothing behind.

#![allow(clippy::unwrap_used)] // in helpers of the tests

mod common;

use std::io::{self, Write};
use std::path::Path;

use common::*;
use turbo_engine_file::{EngineFile, Error, Writer};

/// A writer in a fresh folder that has an older engine file at the target.
fn writer() -> (tempfile::TempDir, Writer) {
    let (folder, path) = file(b"older");
    let mut writer = Writer::create(&path).unwrap();
    writer.add("tokenizer.json", &vec![7; 3 << 20]).unwrap();
    assert_eq!(listing(folder.path()).len(), 2, "the temporary file is beside the target");
    (folder, writer)
}

/// Only the older file is there, as it was.
fn assert_untouched(folder: &Path) {
    assert_eq!(listing(folder), ["engine.plan"]);
    assert_eq!(std::fs::read(folder.join("engine.plan")).unwrap(), b"older");
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let (folder, writer) = writer();
    drop(writer);
    assert_untouched(folder.path());
}

#[test]
fn an_error_in_the_content_is_passed_on_and_leaves_nothing() {
    let (folder, mut writer) = writer();
    let error = writer
        .add_stream(WEIGHTS, 100, |out| {
            out.write_all(&[1; 50])?;
            Err(io::Error::other("tensor `head.weight` has NaNs"))
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the content of entry `weights/dit.safetensors` could not be produced: tensor `head.weight` has NaNs"
    );
    assert_untouched(folder.path()); // while the writer is still there
    let text = writer.add("x", b"").unwrap_err().to_string();
    assert!(text.ends_with("engine.plan was given up after an earlier error"), "{text}");
    assert!(matches!(writer.finish(manifest()), Err(Error::GivenUp { .. } | Error::Manifest { .. })));
    assert_untouched(folder.path());
}

#[test]
fn a_panic_in_the_content_leaves_nothing() {
    let (folder, mut writer) = writer();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _ = writer.add_stream(WEIGHTS, 1, |_| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    assert_untouched(folder.path());
}

#[test]
fn wrong_lengths_are_errors() {
    let (folder, mut short) = writer();
    let text = short.add_stream(WEIGHTS, 10, |out| out.write_all(&[0; 9])).unwrap_err().to_string();
    assert_eq!(text, "entry `weights/dit.safetensors` was announced with 10 bytes, but only 9 were written");
    assert_untouched(folder.path());

    let (folder, mut long) = writer();
    // Even if the content ignores the error that it got.
    let stubborn = |out: &mut dyn Write| {
        out.write_all(&[0; 9])?;
        let _ = out.write_all(&[0; 3]);
        let _ = out.write(&[0; 1]);
        Ok(())
    };
    let text = long.add_stream(WEIGHTS, 10, stubborn).unwrap_err().to_string();
    assert_eq!(
        text,
        "entry `weights/dit.safetensors` was announced with 10 bytes, but at least 12 were written"
    );
    assert_untouched(folder.path());

    let (folder, mut huge) = writer();
    let error = huge.add_stream(WEIGHTS, u64::MAX, |out| out.write_all(b"x")).unwrap_err();
    assert!(matches!(error, Error::WrongLength { expected: u64::MAX, found: 1, .. }), "{error}");
    assert_untouched(folder.path());
}

#[test]
fn names_are_checked() {
    for (name, expected) in [
        ("../evil", "not allowed: it has a `.` or `..` part"),
        ("/evil", "not allowed: it is an absolute path"),
        ("a\\b", "not allowed: it has a backslash"),
        ("manifest.json", "entries `manifest.json` and `manifest.json` have the same name"),
        ("Tokenizer.JSON", "entries `tokenizer.json` and `Tokenizer.JSON` have the same name"),
    ] {
        let (folder, mut writer) = writer();
        let text = writer.add(name, b"").unwrap_err().to_string();
        assert!(text.contains(expected), "{name}: {text}");
        assert_untouched(folder.path());
    }
}

#[test]
fn a_manifest_that_no_reader_would_accept_is_not_written() {
    let (folder, writer) = writer();
    let text = writer.finish(manifest()).unwrap_err().to_string();
    assert_eq!(
        text,
        "manifest.json, stages[0].graph: expected the path of an entry, found \"graphs/text_encoder.onnx\""
    );
    assert_untouched(folder.path());
}

#[test]
fn a_target_that_cannot_be_written_is_named_at_the_start() {
    let (folder, path) = file(b"older");
    for (target, expected) in [
        (folder.path().to_path_buf(), "give the path of a file"),
        (folder.path().join("none/engine.plan"), "check the path and that its folder exists"),
        (path.join("engine.plan"), "a part of the path is a file, not a folder"),
        (Path::new("/").to_path_buf(), "give the path of a file"),
    ] {
        let text = Writer::create(&target).unwrap_err().to_string();
        let start = format!("cannot create {}: ", target.display());
        assert!(text.starts_with(&start) && text.ends_with(expected), "{text}");
    }
    assert_untouched(folder.path());
}

#[cfg(unix)]
#[test]
fn a_read_only_folder_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    match Writer::create(&folder.path().join("engine.plan")) {
        Err(error) => {
            let text = error.to_string();
            assert!(text.ends_with("check the permissions or choose another folder"), "{text}");
        }
        // The superuser may write anywhere; then there is nothing to refuse, but still nothing to leave behind.
        Ok(writer) => drop(writer),
    }
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn relative_targets_without_a_folder_work() {
    // The target's folder is then the current one; no test may change that, so only the start is tried.
    drop(Writer::create(Path::new("relative.plan")).unwrap());
    assert!(!Path::new("relative.plan").exists());
}

#[test]
fn files_that_cannot_be_opened_are_named() {
    let (folder, _path) = file(b"");
    for (path, expected) in [
        (folder.path().join("none.plan"), "check the path and that its folder exists"),
        (folder.path().to_path_buf(), "give the path of a file"),
    ] {
        let text = EngineFile::open(&path).unwrap_err().to_string();
        let start = format!("cannot open {}: ", path.display());
        assert!(text.starts_with(&start) && text.ends_with(expected), "{text}");
    }
    #[cfg(unix)]
    {
        let text = EngineFile::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(text.contains("not a regular file"), "{text}");
    }
}
