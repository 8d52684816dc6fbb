//! Engines to run, and what is said of a finished command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use turbo_tests::vectors;

pub const PROMPT: &str = "A small red circle moves from left to right slowly on a black background.";
/// What the small engine makes: frames, height, width.
pub const SMALL: [usize; 3] = [5, 64, 96];

/// A command of the workspace, which lies two folders above this test's own executable.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.is_file(),
        "{} is missing: build it first, with this test's profile: cargo build --release -p {name}",
        path.display()
    );
    path
}

pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

pub fn compile(output: &Path) -> Command {
    let mut command = Command::new(binary("turbo-compile"));
    command.arg(demo()).arg("-o").arg(output);
    command
}

/// A run of the prompt; the arguments say whether it may use a cache.
pub fn turbo_run(engine: &Path, output: &Path) -> Command {
    let mut command = Command::new(binary("turbo-run"));
    command.arg(engine).args(["-p", PROMPT, "-o"]).arg(output);
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {:?} {}", output.status, text(&output.stderr));
    output
}

#[track_caller]
pub fn refused(output: &Output, code: i32, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{:?} {stderr}", output.status);
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    for part in says {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

/// Names in a folder, hidden ones too.
pub fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[track_caller]
pub fn empty(folder: &Path) {
    assert!(files(folder).is_empty(), "left behind: {:?}", files(folder));
}

/// An engine file of the demo, compiled by the command once; in cargo's folder, as no static is ever dropped.
pub fn engine(once: &'static OnceLock<PathBuf>, name: &str, choices: &[&str]) -> &'static Path {
    once.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        succeeds(compile(&path).args(choices));
        path
    })
}

/// 33 frames: long enough to be interrupted.
pub fn large() -> &'static Path {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    engine(&ONCE, "commands-large.plan", &[])
}

/// [`SMALL`]: runs in a fraction of a second.
pub fn small() -> &'static Path {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    engine(&ONCE, "commands-small.plan", &["--size", "96x64", "--frames", "5", "--topk", "1", "--steps", "1"])
}

/// Two sizes and two frame counts, [`SMALL`] the last of the four.
pub fn four() -> &'static Path {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    let sizes = ["--size", "64x96,96x64", "--frames", "9,5", "--topk", "1", "--steps", "1"];
    engine(&ONCE, "commands-four.plan", &sizes)
}

/// Whether there is an ONNX Runtime to run with.
pub fn can_run() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| vectors::runtime().is_some())
}

pub fn signal(name: &str, child: &Child) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Starts a command and gives its process as soon as its temporary file is in `folder`, when Ctrl-C is awaited.
pub fn started(command: &mut Command, folder: &Path) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while files(folder).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}
