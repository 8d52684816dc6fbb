//! What keeps a command from its end: signals, full disks, places that cannot be written.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

#[test]
fn signals_end_a_compile_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("engine.plan");
    let mut interrupted = 0;
    for (name, delay) in
        [("-INT", 0), ("-INT", 40), ("-INT", 80), ("-INT", 120), ("-INT", 160), ("-TERM", 0), ("-HUP", 0)]
    {
        let child = started(&mut compile(&output), folder.path());
        std::thread::sleep(Duration::from_millis(delay));
        signal(name, &child);
        let done = child.wait_with_output().unwrap();
        if done.status.success() {
            // It was faster this time and had ended.
            fs::remove_file(&output).unwrap();
        } else {
            refused(&done, 130, &["interrupted"]);
            interrupted += 1;
        }
        empty(folder.path());
    }
    assert!(interrupted > 0, "every compile ended before its signal came");
}

/// A shell command in a terminal of its own.
#[cfg(target_os = "linux")]
fn in_terminal(command: &str) -> Command {
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("stty cols 100 rows 30; exec {command}"), "/dev/null"]);
    script.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped());
    script
}

/// The key is pressed when a stage's bar appears, so that each stage is hit however fast the machine is.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_in_a_terminal_ends_every_stage_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: there is no `script` to make a terminal with");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.mp4");
    let command = format!("{:?}", turbo_run(large(), &output).arg("--no-cache"));
    for (stage, delay) in [
        ("loading text_encoder", 0),
        ("denoising", 0),
        ("denoising", 200),
        ("VAE decoder", 0),
        ("VAE decoder", 300),
        ("VAE decoder", 700),
    ] {
        let mut script = in_terminal(&command).spawn().unwrap();
        let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
        let mut screen = script.stdout.take().unwrap();
        while !text(&shown).contains(stage) {
            let read = screen.read(&mut buffer).unwrap();
            assert!(read > 0, "{stage} never came: {}", text(&shown));
            shown.extend(&buffer[..read]);
        }
        std::thread::sleep(Duration::from_millis(delay));
        script.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        let pressed = Instant::now();
        screen.read_to_end(&mut shown).unwrap();
        let shown = text(&shown);
        if delay > 0 && output.exists() {
            // The run was faster this time and had ended.
            fs::remove_file(&output).unwrap();
            continue;
        }
        assert_eq!(script.wait().unwrap().code(), Some(130), "{stage} {delay}: {shown}");
        assert!(shown.contains("error: interrupted"), "{stage} {delay}: {shown}");
        assert!(pressed.elapsed() < Duration::from_secs(5), "{stage} {delay}: {:?}", pressed.elapsed());
        empty(folder.path());
    }
}

#[test]
fn signals_end_a_run_and_leave_nothing_in_a_folder_of_pictures() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, delay) in [("-INT", 300), ("-TERM", 600), ("-HUP", 900)] {
        let mut command = turbo_run(large(), &folder.path().join("frames"));
        let child = started(command.arg("--no-cache"), folder.path());
        std::thread::sleep(Duration::from_millis(delay));
        signal(name, &child);
        let done = child.wait_with_output().unwrap();
        if done.status.success() {
            // The run was faster this time and had ended.
            fs::remove_dir_all(folder.path().join("frames")).unwrap();
        } else {
            refused(&done, 130, &["interrupted"]);
        }
        empty(folder.path());
    }
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let mut places = vec![file.clone()];
    if fs::write(closed.join("probe"), "").is_ok() {
        // The superuser writes there all the same.
        fs::remove_file(closed.join("probe")).unwrap();
    } else {
        places.push(closed.clone());
    }
    if cfg!(target_os = "linux") {
        places.push("/proc".into());
    }
    for place in &places {
        let named = place.to_str().unwrap();
        refused(&compile(&place.join("nope.plan")).output().unwrap(), 4, &[named]);
        for name in ["nope", "nope.mp4", "nope.gif", "nope.webp", "nope.safetensors"] {
            let start = Instant::now();
            refused(&turbo_run(small(), &place.join(name)).output().unwrap(), 4, &[named]);
            assert!(start.elapsed() < Duration::from_secs(5), "{name}: not said before the work");
        }
    }
    // Folders are no files, whichever way round.
    refused(&compile(&closed).output().unwrap(), 4, &["closed"]);
    refused(&turbo_run(small(), &file).output().unwrap(), 4, &["file"]);
    assert_eq!(files(folder.path()), ["closed", "file"]);
    assert_eq!(fs::read(&file).unwrap(), b"kept");
    empty(&closed);
}

/// The command with a limit on the size of its files: a disk that is full after `blocks` blocks. The signal that
/// comes with the limit is ignored, so that the write fails as on a full disk.
fn full_disk(blocks: usize, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

#[test]
fn a_full_disk_leaves_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    // The graphs alone, some weights, all but the end.
    for blocks in [1, 100, 10_000] {
        let output = folder.path().join("engine.plan");
        let done = full_disk(blocks, &compile(&output)).output().unwrap();
        refused(&done, 4, &["engine.plan", "ile too large"]);
        empty(folder.path());
    }
    if !can_run() {
        return;
    }
    for name in ["out.mp4", "out.gif", "out.webp", "out.safetensors", "frames"] {
        let mut command = turbo_run(small(), &folder.path().join(name));
        let done = full_disk(1, command.arg("--no-cache")).output().unwrap();
        refused(&done, 4, &[name, "ile too large"]);
        empty(folder.path());
    }
}

#[test]
fn a_cache_that_is_full_costs_only_time() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (output, cache) = (folder.path().join("out.mp4"), folder.path().join("cache"));
    // The video fits in 64 blocks, the embedding does not.
    succeeds(&mut full_disk(64, turbo_run(small(), &output).arg("--cache-dir").arg(&cache)));
    empty(&cache);
    // Nor does a cache that cannot be made at all.
    succeeds(turbo_run(small(), &output).arg("--cache-dir").arg(output.join("cache")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_printed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut commands =
        vec![compile(&folder.path().join("engine.plan")), Command::new(binary("turbo-compile"))];
    commands[0].arg("--json");
    commands[1].arg("inspect").arg(small());
    if can_run() {
        commands.push(turbo_run(small(), &folder.path().join("out.mp4")));
        commands[2].args(["--json", "--no-cache"]);
    }
    for command in &mut commands {
        let done = command.stdout(full()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        refused(&done, 4, &["standard output", "No space left"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn completions_that_cannot_be_printed_are_an_error() {
    for name in ["turbo-compile", "turbo-run"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(binary(name));
        let child =
            command.args(["completions", "bash"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        refused(&child.wait_with_output().unwrap(), 4, &["standard output"]);
    }
}
