//! Prompt (and image) to frames through turbo-compile's engine file and turbo-run's pipeline, against the reference.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use turbo_compile::{Choices, NoProgress, compile};
use turbo_engine_file::{EngineFile, Sampler};
use turbo_media::Frame;
use turbo_pipeline::{Engine, Precision, Request, Silent};
use turbo_sampler::NoiseKind;

use super::backend::Backend;
use crate::demo::psnr;
use crate::vectors::{Family, Vectors, find};

/// Least PSNR in dB of a bf16 run against the reference whose networks' inputs were rounded.
const PSNR: f64 = 42.0;

pub(super) fn t2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let transformers = [("dit_t2v_ckpt.safetensors", "dit.safetensors")];
    check(backend, family, "e2e_t2v.safetensors", &transformers)
}

pub(super) fn i2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let transformers = [
        ("dit_i2v_high_ckpt.safetensors", "high.safetensors"),
        ("dit_i2v_low_ckpt.safetensors", "low.safetensors"),
    ];
    check(backend, family, "e2e_i2v.safetensors", &transformers)
}

fn check(
    backend: &dyn Backend,
    family: &mut Family,
    name: &str,
    transformers: &[(&str, &str)],
) -> Result<()> {
    let v = Vectors::find(name)?;
    let folder = tempfile::tempdir()?;
    let engine = engine(backend, &v, transformers, folder.path())?;
    // In f32; rounded as deployed, which is what a network that rounds is compared with; by ODE.
    let variants: &[&str] = if backend.is_exact() { &["", "bf16io.", "ode."] } else { &["bf16io."] };
    for prefix in variants.iter().filter(|prefix| v.has(&format!("{prefix}samples"))) {
        family.attempt(&format!("{prefix}run"), |family| {
            let rounded = *prefix == "bf16io.";
            let request = Request {
                video: 0,
                prompt: prompt(&v)?,
                image: image(&v)?,
                seed: 0,
                steps: Some(4),
                sampler: Some(if *prefix == "ode." { Sampler::Ode } else { Sampler::Sde }),
                sigma_max: v.number("sigma_max"),
                noise: format!("file:{}", find(name)?.display()).parse::<NoiseKind>()?.source(0)?,
                precision: if rounded { Precision::Bf16 } else { Precision::F32 },
                cache: None,
            };
            let mut frames = Vec::new();
            let report = engine.generate(request, &mut Silent, &mut |frame| {
                frames.push(frame);
                Ok(())
            })?;
            // Rounding to bf16 turns differences of 1e-7 into one of 4e-3 here and there.
            let bound = if rounded { 1.5e-2 } else { 1e-4 };
            let samples = format!("{prefix}samples");
            family.rel(&samples, &report.latent, &v.values(&samples)?, bound);
            let expected = video(&v, &format!("{prefix}frames_thwc_u8"))?;
            let case = format!("{prefix}frames");
            family.value(&case, furthest(&frames, &expected), if rounded { 16.0 } else { 1.0 });
            if !backend.is_exact() {
                family.value(&format!("{case}, 42 dB over PSNR"), PSNR / psnr(&frames, &expected), 1.0);
            }
            Ok(())
        });
    }
    Ok(())
}

/// Compiles a model made of golden checkpoints: file names and what they are called in the folder.
fn engine(
    backend: &dyn Backend,
    v: &Vectors,
    transformers: &[(&str, &str)],
    folder: &Path,
) -> Result<Engine> {
    let others = [
        ("umt5_ckpt.safetensors", "umt5.safetensors"),
        ("vae_ckpt.safetensors", "vae.safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer.json"),
    ];
    let model = folder.join("model");
    std::fs::create_dir(&model)?;
    for (name, to) in transformers.iter().chain(&others) {
        std::fs::copy(find(name)?, model.join(to))?;
    }
    let shape = v.f32("video")?.shape;
    let output = folder.join("engine.plan");
    let choices = Choices {
        model: Some(model),
        attention: Some(turbo_models::dit::Attention::Dense),
        linear: Some(turbo_models::dit::Linear::Bf16),
        size: vec![turbo_compile::choices::Size { width: shape[4], height: shape[3] }],
        frames: vec![shape[2]],
        output: Some(output.clone()),
        ..backend.choices(folder)
    };
    compile(&choices, &mut NoProgress)?;
    backend.open(EngineFile::open(&output)?)
}

fn prompt(v: &Vectors) -> Result<String> {
    let said = v.0.metadata().get("prompt").context("the vectors name no prompt")?;
    Ok(serde_json::from_str(said)?)
}

fn image(v: &Vectors) -> Result<Option<Frame>> {
    if !v.has("image_hwc_u8") {
        return Ok(None);
    }
    let (shape, rgb) = v.i64("image_hwc_u8")?;
    Ok(Some(Frame { height: shape[0], width: shape[1], rgb: rgb.iter().map(|&v| v as u8).collect() }))
}

/// Frames `[t, h, w, 3]`.
fn video(v: &Vectors, name: &str) -> Result<Vec<Frame>> {
    let (shape, rgb) = v.i64(name)?;
    ensure!(shape.len() == 4 && shape[3] == 3, "{name} is {shape:?}");
    let rgb: Vec<u8> = rgb.iter().map(|&v| v as u8).collect();
    let frame = |rgb: &[u8]| Frame { height: shape[1], width: shape[2], rgb: rgb.to_vec() };
    Ok(rgb.chunks((shape[1] * shape[2] * 3).max(1)).map(frame).collect())
}

/// The largest difference of a value, of 0..255; more than there can be where sizes differ.
fn furthest(found: &[Frame], expected: &[Frame]) -> f64 {
    let size = |frames: &[Frame]| frames.iter().map(|frame| frame.rgb.len()).collect::<Vec<usize>>();
    if size(found) != size(expected) {
        return 256.0;
    }
    let pairs = found.iter().zip(expected).flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb));
    f64::from(pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0))
}
