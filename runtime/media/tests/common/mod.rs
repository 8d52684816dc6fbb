//! Videos to write and measures to take.
#![allow(dead_code)] // each suite takes its share
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a helper of a test may panic and talk like the test

use std::path::Path;
use std::process::Command;

use turbo_media::{Error, Frame, create};

/// A soft gradient and a disc with a sharp edge that moves and changes its colour.
pub fn video(width: usize, height: usize, frames: usize) -> Vec<Frame> {
    let frame = |i: usize| {
        let phase = i as f32 / frames as f32;
        let (cx, cy) = (width as f32 * (0.2 + 0.6 * phase), height as f32 * 0.5);
        let radius = width.min(height) as f32 * 0.3;
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                let distance = ((x as f32 - cx).powi(2) + (y as f32 - cy).powi(2)).sqrt();
                let inside = (radius - distance + 0.5).clamp(0.0, 1.0);
                let ground = [40 + 90 * x / width, 60 + 80 * y / height, 130 - 70 * x / width];
                let disc = [220.0, 100.0 + 90.0 * phase, 70.0];
                for c in 0..3 {
                    rgb.push((disc[c] * inside + ground[c] as f32 * (1.0 - inside)).round() as u8);
                }
            }
        }
        Frame { width, height, rgb }
    };
    (0..frames).map(frame).collect()
}

/// Writes a whole video.
pub fn write(path: &Path, frames: &[Frame], fps: u32) -> Result<(), Error> {
    let mut sink = create(path, frames[0].width, frames[0].height, fps, frames.len())?;
    for frame in frames {
        sink.push(frame)?;
    }
    sink.finish()
}

/// Peak signal to noise ratio in decibels over all bytes of both.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let mean = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}

/// All frames one after another.
pub fn bytes(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|f| f.rgb.iter().copied()).collect()
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether ffmpeg and ffprobe are there. Where they must be (`TURBO_REQUIRE_FFMPEG=1`), their absence is a
/// failure and no reason to skip.
pub fn ffmpeg_is_there() -> bool {
    let runs = |tool: &str| Command::new(tool).arg("-version").output().is_ok_and(|o| o.status.success());
    let there = runs("ffmpeg") && runs("ffprobe");
    if !there {
        let required = std::env::var("TURBO_REQUIRE_FFMPEG").is_ok_and(|v| v == "1");
        assert!(!required, "TURBO_REQUIRE_FFMPEG=1, but ffmpeg and ffprobe cannot be run");
        println!("skipped: ffmpeg and ffprobe cannot be run");
    }
    there
}
