//! The demo checkpoint's held-out captions, their true videos, and how close a generated video comes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use turbo_media::{Frame, load_image};
use turbo_pipeline::{Engine, Precision, Request, Silent};
use turbo_sampler::NoiseKind;

/// The folder `demo` beside a program that was carried elsewhere, or `models/demo` of the workspace.
pub fn folder() -> PathBuf {
    let carried = std::env::current_exe().ok().map(|program| program.with_file_name("demo"));
    let carried = carried.filter(|folder| folder.join("captions.json").is_file());
    carried.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo"))
}

/// captions.json.
#[derive(Debug, Deserialize)]
pub struct Captions {
    /// Frames of each true video.
    pub frames: usize,
    /// Rows of pixels of each frame.
    pub height: usize,
    /// Combinations held out of training.
    pub held_out: Vec<HeldOut>,
}

/// One held-out combination.
#[derive(Debug, Deserialize)]
pub struct HeldOut {
    /// True video, relative to the folder.
    pub file: String,
    /// Three ways to say it.
    pub captions: Vec<String>,
    /// PSNR in dB that the reference code reaches, by number of steps.
    pub psnr_reference: std::collections::BTreeMap<String, f64>,
}

impl Captions {
    /// Reads captions.json.
    ///
    /// # Errors
    /// A file that is missing or of another form.
    pub fn read() -> Result<Captions> {
        let path = folder().join("captions.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The true video of a combination.
    ///
    /// # Errors
    /// A picture that is missing or of another size.
    pub fn truth(&self, of: &HeldOut) -> Result<Vec<Frame>> {
        let strip = load_image(&folder().join(&of.file))?;
        ensure!(strip.height == self.frames * self.height, "{} has {} rows", of.file, strip.height);
        let bytes = strip.width * self.height * 3;
        let frame = |rgb: &[u8]| Frame { width: strip.width, height: self.height, rgb: rgb.to_vec() };
        Ok(strip.rgb.chunks(bytes).map(frame).collect())
    }
}

/// Frames with the noise of the reference's figures: `torch.randn` on a GPU of 132 multiprocessors, seed 0.
///
/// # Errors
/// What the pipeline reports.
pub fn generate(engine: &Engine, prompt: &str, steps: u32) -> Result<Vec<Frame>> {
    generate_video(engine, 0, prompt, steps)
}

/// As [`generate`], of one of the videos that the engine file is made for.
///
/// # Errors
/// What the pipeline reports.
pub fn generate_video(engine: &Engine, video: usize, prompt: &str, steps: u32) -> Result<Vec<Frame>> {
    let noise: NoiseKind = "torch-cuda:132x2048".parse().map_err(anyhow::Error::msg)?;
    let request = Request {
        video,
        prompt: prompt.to_string(),
        image: None,
        seed: 0,
        steps: Some(steps),
        sampler: None,
        sigma_max: None,
        noise: noise.source(0)?,
        precision: Precision::Bf16,
        cache: None,
    };
    let mut frames = Vec::new();
    engine.generate(request, &mut Silent, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok(frames)
}

/// PSNR in dB over all frames and channels, on the 0..255 scale.
pub fn psnr(a: &[Frame], b: &[Frame]) -> f64 {
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb));
    let (mut sum, mut count) = (0.0, 0u64);
    for (&x, &y) in pairs {
        let d = f64::from(x) - f64::from(y);
        sum += d * d;
        count += 1;
    }
    10.0 * (255.0f64 * 255.0 * count as f64 / sum.max(1e-9)).log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_of_a_known_difference() {
        let a = vec![Frame { width: 2, height: 1, rgb: vec![10; 6] }];
        let b = vec![Frame { width: 2, height: 1, rgb: vec![15; 6] }];
        assert!((psnr(&a, &b) - 20.0 * (255.0f64 / 5.0).log10()).abs() < 1e-9);
    }

    #[test]
    fn true_videos_have_their_frames() {
        let captions = Captions::read().unwrap();
        assert!(captions.held_out.len() >= 8);
        for one in &captions.held_out {
            assert_eq!(captions.truth(one).unwrap().len(), captions.frames);
        }
    }
}
