//! Prompt (and image) to frames through turbo-compile's engine file and turbo-run's pipeline, against the reference.

use std::path::Path;

use turbo_compile::{Choices, NoProgress, compile};
use turbo_engine_file::{EngineFile, Sampler};
use turbo_media::Frame;
use turbo_pipeline::{Engine, Precision, Request, Silent, backend};
use turbo_sampler::NoiseKind;
use turbo_tests::vectors::{Family, Vectors, file, runtime};

/// Compiles a model made of golden checkpoints: file names and what they are called in the folder.
fn engine(files: &[(&str, &str)], size: [usize; 3], folder: &Path) -> Option<Engine> {
    for (name, to) in files {
        std::fs::copy(file(name)?, folder.join(to)).unwrap();
    }
    let choices = Choices {
        model: Some(folder.to_path_buf()),
        attention: Some(turbo_models::dit::Attention::Dense),
        linear: Some(turbo_models::dit::Linear::Bf16),
        size: Some(turbo_compile::choices::Size { width: size[2], height: size[1] }),
        frames: Some(size[0]),
        output: Some(folder.join("engine.plan")),
        ..Choices::default()
    };
    compile(&choices, &mut NoProgress).unwrap();
    runtime()?;
    let runtime = backend::init(None, None).unwrap();
    Some(Engine::new(EngineFile::open(&folder.join("engine.plan")).unwrap(), runtime).unwrap())
}

fn prompt(v: &Vectors) -> String {
    let said = v.0.metadata().get("prompt").cloned();
    let json = said.unwrap_or_else(|| panic!("no prompt in {:?}", v.0.metadata()));
    serde_json::from_str(&json).unwrap()
}

/// Runs every variant that the file holds: `""` in f32, `bf16io.` rounded as deployed, `ode.` by ODE.
fn check(name: &str, v: &Vectors, path: &Path, engine: &Engine, image: Option<&Frame>) {
    let mut family = Family::new(name);
    for prefix in ["", "bf16io.", "ode."] {
        let Some(samples) = v.get(&format!("{prefix}samples")) else { continue };
        let request = Request {
            prompt: prompt(v),
            image: image.cloned(),
            seed: 0,
            steps: Some(4),
            sampler: Some(if prefix == "ode." { Sampler::Ode } else { Sampler::Sde }),
            sigma_max: v.0.metadata().get("sigma_max").and_then(|s| s.parse().ok()),
            noise: format!("file:{}", path.display()).parse::<NoiseKind>().unwrap().source(0).unwrap(),
            precision: if prefix == "bf16io." { Precision::Bf16 } else { Precision::F32 },
            cache: None,
        };
        let mut frames = Vec::new();
        let report = engine
            .generate(request, &mut Silent, &mut |frame| {
                frames.push(frame);
                Ok(())
            })
            .unwrap();
        // Rounding to bf16 turns differences of 1e-7 into one of 4e-3 here and there.
        let bound = if prefix == "bf16io." { 1.5e-2 } else { 1e-4 };
        family.rel(&format!("{prefix}samples"), &report.latent, samples.as_f32(), bound);
        let (_, expected) = v.i64(&format!("{prefix}frames_thwc_u8"));
        let found = frames.iter().flat_map(|f| &f.rgb);
        let worst = found.zip(&expected).map(|(&a, &b)| (i64::from(a) - b).abs()).max().unwrap_or(256);
        family.value(&format!("{prefix}frames"), worst as f64, if prefix == "bf16io." { 16.0 } else { 1.0 });
    }
}

#[test]
fn golden_e2e_t2v() {
    let Some(path) = file("e2e_t2v.safetensors") else { return };
    let v = Vectors::open(&path);
    let video = v.f32("video");
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("dit_t2v_ckpt.safetensors", "dit.safetensors"),
        ("umt5_ckpt.safetensors", "umt5.safetensors"),
        ("vae_ckpt.safetensors", "vae.safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer.json"),
    ];
    let size = [video.shape[2], video.shape[3], video.shape[4]];
    let Some(engine) = engine(&files, size, folder.path()) else { return };
    check("e2e_t2v", &v, &path, &engine, None);
}

#[test]
fn golden_e2e_i2v() {
    let Some(path) = file("e2e_i2v.safetensors") else { return };
    let v = Vectors::open(&path);
    let video = v.f32("video");
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ("dit_i2v_high_ckpt.safetensors", "high.safetensors"),
        ("dit_i2v_low_ckpt.safetensors", "low.safetensors"),
        ("umt5_ckpt.safetensors", "umt5.safetensors"),
        ("vae_ckpt.safetensors", "vae.safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer.json"),
    ];
    let size = [video.shape[2], video.shape[3], video.shape[4]];
    let Some(engine) = engine(&files, size, folder.path()) else { return };
    let (shape, rgb) = v.i64("image_hwc_u8");
    let image = Frame { height: shape[0], width: shape[1], rgb: rgb.iter().map(|&v| v as u8).collect() };
    check("e2e_i2v", &v, &path, &engine, Some(&image));
}
