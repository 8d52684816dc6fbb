//! The demo: from the checkpoint in models/demo to a video.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, python, root, run};

/// A caption that the demo checkpoint was not trained on.
pub const PROMPT: &str = "A small red circle moves from left to right slowly on a black background.";

/// Builds the commands, compiles models/demo and makes demo.mp4 and demo.png in the workspace's root.
pub fn demo() -> Result<()> {
    let library = python::onnxruntime()?;
    build()?;
    let bin = root().join("target/release");
    run(Command::new(bin.join("turbo-compile")).args(["models/demo", "-o", "demo.plan"]))?;
    run(Command::new(bin.join("turbo-run"))
        .args(["demo.plan", "--prompt", PROMPT, "-o", "demo.mp4", "--contact-sheet", "demo.png"])
        .env("ORT_DYLIB_PATH", library))
}

/// Builds the two commands.
pub fn build() -> Result<()> {
    let packages = ["--package", "turbo-compile", "--package", "turbo-run"];
    run(cargo(&["build", "--release", "--quiet"]).args(packages))
}
