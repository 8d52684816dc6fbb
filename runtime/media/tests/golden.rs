//! The picture's way into the model, against what the reference code computed.
#![allow(clippy::unwrap_used)] // a helper of a test may panic like the test

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use turbo_media::{Frame, adaptive_size, frames_from_video_chunk, resize, to_tensor};

fn golden(name: &str) -> Vec<u8> {
    let folder = std::env::var_os("TURBO_GOLDEN").map(PathBuf::from);
    let folder = folder
        .unwrap_or_else(|| [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "golden"].iter().collect());
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn image(tensors: &SafeTensors) -> Frame {
    let tensor = tensors.tensor("image_hwc_u8").unwrap();
    Frame { width: tensor.shape()[1], height: tensor.shape()[0], rgb: tensor.data().to_vec() }
}

#[test]
fn golden_resize_is_exact() {
    let file = golden("e2e_i2v.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let expected = tensors.tensor("image_resized_chw_u8").unwrap();
    let [3, height, width] = expected.shape()[..] else { panic!("{:?}", expected.shape()) };
    let found = resize(&image(&tensors), width, height).unwrap();
    let planar: Vec<u8> = (0..3).flat_map(|c| found.rgb.iter().skip(c).step_by(3).copied()).collect();
    let differing = planar.iter().zip(expected.data()).filter(|(a, b)| a != b).count();
    assert_eq!((planar.len(), differing), (3 * height * width, 0));
}

#[test]
fn golden_image_tensor_is_exact() {
    let file = golden("e2e_i2v.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let expected = tensors.tensor("image_tensor").unwrap();
    let [1, 3, height, width] = expected.shape()[..] else { panic!("{:?}", expected.shape()) };
    let found = to_tensor(&resize(&image(&tensors), width, height).unwrap()).unwrap();
    let differing = found.iter().zip(floats(expected.data())).filter(|(a, b)| **a != *b).count();
    assert_eq!((found.len(), differing), (3 * height * width, 0));
}

#[test]
fn golden_frames_are_exact() {
    let file = golden("e2e_i2v.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let video = tensors.tensor("video").unwrap();
    let [1, 3, t, h, w] = video.shape()[..] else { panic!("{:?}", video.shape()) };
    let frames = frames_from_video_chunk(&floats(video.data()), t, h, w).unwrap();
    let found: Vec<u8> = frames.into_iter().flat_map(|f| f.rgb).collect();
    let expected = tensors.tensor("frames_thwc_u8").unwrap();
    let differing = found.iter().zip(expected.data()).filter(|(a, b)| a != b).count();
    assert_eq!((found.len(), differing), (expected.data().len(), 0));
}

#[derive(Deserialize)]
struct Case {
    image_w: usize,
    image_h: usize,
    resolution: String,
    aspect_ratio: String,
    w: usize,
    h: usize,
}

#[test]
fn golden_adaptive_sizes_are_exact() {
    let cases: Vec<Case> = serde_json::from_slice(&golden("adaptive_resolution.json")).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        // The sizes that the resolution names stand for.
        let (base_w, base_h) = match (case.resolution.as_str(), case.aspect_ratio.as_str()) {
            ("480p", "1:1") => (640, 640),
            ("480p", "4:3") => (640, 480),
            ("480p", "3:4") => (480, 640),
            ("480p", "16:9") => (832, 480),
            ("480p", "9:16") => (480, 832),
            ("720p", "1:1") => (960, 960),
            ("720p", "4:3") => (960, 720),
            ("720p", "3:4") => (720, 960),
            ("720p", "16:9") => (1280, 720),
            ("720p", "9:16") => (720, 1280),
            other => panic!("unknown resolution {other:?}"),
        };
        let found = adaptive_size(case.image_w, case.image_h, base_w * base_h, 16).unwrap();
        assert_eq!(found, (case.w, case.h), "{} x {} at {}", case.image_w, case.image_h, case.resolution);
    }
}
