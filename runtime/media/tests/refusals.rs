//! Outputs that cannot be written: a clear error, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a helper of a test may panic like the test

mod common;

use std::error::Error as _;
use std::fs;
use std::path::Path;

use common::{names, video, write};
use turbo_media::{Error, Frame, create, write_png};

const NAMES: [&str; 5] = ["out.mp4", "out.gif", "out.webp", "out.safetensors", "out"];

fn failure(path: &Path, width: usize, height: usize, fps: u32, frames: usize) -> Error {
    match create(path, width, height, fps, frames) {
        Err(error) => error,
        Ok(_) => panic!("{} was opened for {width} x {height}, {fps} fps, {frames} frames", path.display()),
    }
}

#[test]
fn nothing_shows_before_the_end_nor_after_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = folder.path().join(name);
        let frames = video(32, 32, 3);
        let mut sink = create(&path, 32, 32, 16, 3).unwrap();
        for frame in &frames {
            sink.push(frame).unwrap();
            assert!(!path.exists(), "{name}");
        }
        drop(sink);
        assert_eq!(names(folder.path()), [""; 0], "{name}");
    }
}

#[test]
fn an_older_output_survives_giving_up() {
    let folder = tempfile::tempdir().unwrap();
    for name in &NAMES[..4] {
        let path = folder.path().join(name);
        fs::write(&path, "older").unwrap();
        let mut sink = create(&path, 32, 32, 16, 2).unwrap();
        sink.push(&video(32, 32, 1)[0]).unwrap();
        assert!(sink.finish().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"older");
        fs::remove_file(path).unwrap();
    }
    let frames = folder.path().join("out");
    write(&frames, &video(8, 8, 2), 16).unwrap();
    let before = fs::read(frames.join("0000.png")).unwrap();
    let mut sink = create(&frames, 32, 32, 16, 2).unwrap();
    sink.push(&video(32, 32, 1)[0]).unwrap();
    drop(sink);
    assert_eq!(names(&frames), ["0000.png", "0001.png"]);
    assert_eq!(fs::read(frames.join("0000.png")).unwrap(), before);
}

#[test]
fn frame_counts_must_come_true() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = folder.path().join(name);
        let frame = &video(32, 32, 1)[0];
        let mut sink = create(&path, 32, 32, 16, 2).unwrap();
        sink.push(frame).unwrap();
        let error = sink.finish().unwrap_err();
        assert!(matches!(error, Error::FrameCount { expected: 2, found: 1 }), "{name}: {error}");

        let mut sink = create(&path, 32, 32, 16, 1).unwrap();
        sink.push(frame).unwrap();
        let error = sink.push(frame).unwrap_err();
        assert!(matches!(error, Error::FrameCount { expected: 1, found: 2 }), "{name}: {error}");
        drop(sink);

        let error = failure(&path, 32, 32, 16, 0);
        assert!(matches!(error, Error::DoesNotFit { .. }), "{name}: {error}");
        assert_eq!(names(folder.path()), [""; 0], "{name}");
    }
}

#[test]
fn frames_must_have_the_announced_size() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let mut sink = create(&folder.path().join(name), 32, 32, 16, 2).unwrap();
        sink.push(&video(32, 32, 1)[0]).unwrap();
        let error = sink.push(&video(32, 34, 1)[0]).unwrap_err();
        assert_eq!(error.to_string(), "frame 1 is 32 x 34, expected 32 x 32 as announced for the video");
        let short = Frame { width: 32, height: 32, rgb: vec![0; 32 * 32 * 3 - 1] };
        let error = sink.push(&short).unwrap_err();
        assert!(matches!(error, Error::FrameBytes { width: 32, height: 32, found: 3071 }), "{name}: {error}");
    }
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn sizes_that_a_format_cannot_hold_are_refused_with_what_it_can() {
    let folder = tempfile::tempdir().unwrap();
    for (name, width, height, says) in [
        ("out.mp4", 33, 31, "such as 34 x 32"),
        ("out.mp4", 8, 64, "between 16 and 3840 x 2160 pixels, found 8 x 64"),
        ("out.mp4", 4096, 64, "found 4096 x 64"),
        ("out.mp4", 2400, 2400, "found 2400 x 2400"),
        ("out.mp4", 0, 0, "found 0 x 0"),
        ("out.webp", 16384, 16, "between 1 and 16383 a side pixels, found 16384 x 16"),
        ("out.gif", 70_000, 16, "found 70000 x 16"),
        ("out", usize::MAX, usize::MAX, "found"),
        ("out.safetensors", 1, 0, "found 1 x 0"),
    ] {
        let error = failure(&folder.path().join(name), width, height, 16, 4);
        assert!(matches!(error, Error::DoesNotFit { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    for (name, fps) in [("out.mp4", 0), ("out.mp4", u32::MAX), ("out.gif", 51), ("out.webp", 1001)] {
        let error = failure(&folder.path().join(name), 32, 32, fps, 4);
        assert!(error.to_string().contains("frames a second"), "{error}");
    }
    let error = failure(&folder.path().join("out.mp4"), 32, 32, 16, usize::MAX);
    assert!(error.to_string().contains("frames, found"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn places_that_do_not_suit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let error = failure(&folder.path().join("missing").join(name), 32, 32, 16, 4);
        assert!(error.to_string().contains("missing` does not exist: create it first"), "{error}");
    }
    fs::write(folder.path().join("file"), "mine").unwrap();
    let error = failure(&folder.path().join("file"), 32, 32, 16, 4);
    assert!(error.to_string().contains("it is a file, expected a folder"), "{error}");
    let error = write_png(folder.path(), &video(8, 8, 1)[0]).unwrap_err();
    assert!(error.to_string().contains("it is a folder"), "{error}");
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_longer_video_in_the_folder_is_not_mixed_with_a_shorter_one() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &video(8, 8, 5), 16).unwrap();
    let error = failure(folder.path(), 8, 8, 16, 4);
    assert!(error.to_string().contains("0004.png"), "{error}");
    assert_eq!(names(folder.path()).len(), 5);
    write(folder.path(), &video(8, 8, 6), 16).unwrap();
    assert_eq!(names(folder.path()).len(), 6);
}

/// The administrator may write everywhere, so that the test falls back to a file system without files.
#[cfg(unix)]
#[test]
fn a_read_only_folder_is_refused_at_once() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let all_powerful = fs::write(closed.join("probe"), "").is_ok();
    let place = if all_powerful { Path::new("/proc") } else { &closed };
    for name in NAMES {
        let error = failure(&place.join(name), 32, 32, 16, 4);
        assert!(matches!(error, Error::Write { .. }), "{error}");
        assert!(error.source().is_some() && error.to_string().contains(name), "{error}");
    }
    if !all_powerful {
        assert!(matches!(failure(&closed, 32, 32, 16, 4), Error::Write { .. }));
    }
}

/// Runs itself once more in a process that may not write more than 4 KiB to a file, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    use std::process::Command;
    if let Some(folder) = std::env::var_os("TURBO_TEST_FULL_DISK") {
        // No compressor makes less of these than there is.
        let noise = |i: u64| {
            let mixed = (i * 12_288..(i + 1) * 12_288).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
            mixed.map(|v| (v.wrapping_mul(v) >> 30) as u8).collect()
        };
        let frames: Vec<Frame> = (0..20).map(|i| Frame { width: 64, height: 64, rgb: noise(i) }).collect();
        for name in NAMES {
            let error = write(&Path::new(&folder).join(name), &frames, 16).expect_err(name);
            assert!(matches!(error, Error::Write { .. }), "{name}: {error:?}");
            assert!(error.to_string().contains(name), "{name}: {error:?}");
        }
        assert!(write_png(&Path::new(&folder).join("sheet.png"), &frames[0]).is_err());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_leaves_nothing_behind", "--nocapture"])
        .env("TURBO_TEST_FULL_DISK", folder.path())
        .output()
        .unwrap();
    let said = [child.stdout, child.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(names(folder.path()), [""; 0]);
}
