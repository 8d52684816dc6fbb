//! What needs no GPU: whether an engine file suits a machine, and whether it fits into memory.

use super::*;

const GIB: u64 = 1 << 30;

fn gpu() -> Gpu {
    Gpu {
        index: 0,
        name: "NVIDIA Found".to_string(),
        compute_capability: (9, 0),
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        memory: 80 * GIB,
    }
}

fn needed() -> turbo_engine_file::Gpu {
    turbo_engine_file::Gpu {
        name: "NVIDIA Wanted".to_string(),
        compute_capability: [9, 0],
        tensorrt: "10.13.2".to_string(),
        cuda: "12.9".to_string(),
    }
}

/// What a machine says of `needed`, as the user reads it; empty if nothing.
fn said(gpu: &Gpu, tensorrt: &str, driver: Option<(i32, i32)>, needed: &turbo_engine_file::Gpu) -> String {
    let library = Path::new("/opt/libnvinfer.so.10");
    let machine = Machine { gpu, tensorrt: tensorrt.to_string(), library, driver };
    machine.suits(needed).err().map_or_else(String::new, |error| {
        assert!(matches!(error, RunError::Machine { .. }), "{error:?}");
        error.to_string()
    })
}

#[test]
fn a_machine_like_the_one_that_compiled_suits() {
    for driver in [(12, 9), (12, 10), (13, 0)] {
        assert_eq!(said(&gpu(), "10.13.2", Some(driver), &needed()), "");
    }
    // The name does not matter: a plan runs on every GPU of its compute capability.
    assert_ne!(gpu().name, needed().name);
}

#[test]
fn another_compute_capability_is_refused() {
    for found in [(8, 9), (9, 1), (12, 0), (-1, 0)] {
        let gpu = Gpu { compute_capability: found, ..gpu() };
        let expected = format!(
            "the engine file was built on NVIDIA Wanted for compute capability 9.0, this GPU is NVIDIA Found with \
             {}.{}\nhint: compile the model on this machine: turbo-compile MODEL --target trt",
            found.0, found.1
        );
        assert_eq!(said(&gpu, "10.13.2", Some((12, 9)), &needed()), expected);
    }
}

#[test]
fn another_tensorrt_is_refused() {
    for found in ["10.13.3", "10.9.0", "11.0.0", ""] {
        let expected = format!(
            "the engine file was built with TensorRT 10.13.2, /opt/libnvinfer.so.10 is {found}\n\
             hint: give that version with --tensorrt PATH, or compile the model with this one: \
             turbo-compile MODEL --target trt"
        );
        assert_eq!(said(&gpu(), found, Some((12, 9)), &needed()), expected);
    }
}

#[test]
fn a_driver_that_is_too_old_is_refused() {
    for (driver, found) in [(Some((12, 8)), "12.8"), (Some((11, 10)), "11.10"), (None, "0.0")] {
        let expected = format!(
            "the engine file needs a driver for CUDA 12.9 or newer, this one is for CUDA {found}\n\
             hint: update the NVIDIA driver (nvidia-smi shows it), or compile the model on this machine: \
             turbo-compile MODEL --target trt"
        );
        assert_eq!(said(&gpu(), "10.13.2", driver, &needed()), expected);
    }
}

/// A manifest whose stages need so many GiB at their peak, and of these so many for what they compute on the way.
fn made(needs: &[(u64, u64)]) -> Manifest {
    let sample = include_bytes!("../../../engine-file/tests/sample.json");
    let mut manifest = turbo_engine_file::parse_manifest(sample).unwrap();
    let one = manifest.stages[0].clone();
    let stage = |(i, &(peak, activation)): (usize, &(u64, u64))| turbo_engine_file::Stage {
        name: format!("stage_{i}"),
        video: None,
        peak_memory_bytes: Some(peak * GIB),
        activation_bytes: Some(activation * GIB),
        ..one.clone()
    };
    manifest.stages = needs.iter().enumerate().map(stage).collect();
    assert_eq!((manifest.videos[0].latent[1], manifest.videos[0].vae_stride[0]), (9, 4));
    manifest
}

/// What is said with so many GiB; empty if it fits.
fn refusal(needs: &[(u64, u64)], free: u64, total: u64) -> String {
    let memory = MemoryInfo { free: free * GIB, total: total * GIB };
    fits(&made(needs), 0, memory).err().map_or_else(String::new, |error| {
        assert!(matches!(error, RunError::Machine { .. }), "{error:?}");
        error.to_string()
    })
}

#[test]
fn what_fits_is_let_through() {
    assert_eq!(refusal(&[(28, 18)], 28, 80), "");
    assert_eq!(refusal(&[], 0, 80), "");
    let mut unmeasured = made(&[(28, 18)]);
    unmeasured.stages[0].peak_memory_bytes = None;
    assert!(fits(&unmeasured, 0, MemoryInfo { free: 1, total: 1 }).is_ok());
}

#[test]
fn the_arena_counts_in_every_stage() {
    // 11 GiB of weights beside the 18 GiB that the other stage computes in.
    assert_eq!(refusal(&[(12, 1), (19, 18)], 29, 80), "");
    let text = refusal(&[(12, 1), (19, 18)], 28, 80);
    assert!(
        text.starts_with("stage stage_0 needs 29.00 GiB of GPU memory, 28.00 of 80.00 GiB are"),
        "{text}"
    );
}

#[test]
fn the_parts_of_an_expert_count_together() {
    let mut manifest = made(&[(12, 1), (19, 18), (12, 2)]);
    manifest.experts.high.steps = vec!["stage_0".to_string(), "stage_2".to_string()];
    // The latent in f64, noise for the start and four steps in f32; what modulates the blocks and the head in each.
    let latent: u64 = manifest.videos[0].latent.iter().map(|&extent| u64::from(extent)).product();
    let (layers, dim) = (u64::from(manifest.model.layers), u64::from(manifest.model.dim));
    let state = latent * (8 + 5 * 4) + 4 * 4 * dim * (6 * layers + 2);
    assert_eq!(largest(&manifest, 0), Some(("stage_0", 21 * GIB + state)));
    assert_eq!(peak_bytes(&manifest, 0), Some(39 * GIB + state));
    // So it is with the other expert.
    let low = manifest.experts.low.as_mut().unwrap();
    low.steps = std::mem::replace(&mut manifest.experts.high.steps, vec!["stage_1".to_string()]);
    assert_eq!(largest(&manifest, 0), Some(("stage_0", 21 * GIB + state)));
}

#[test]
fn more_than_there_can_be_is_refused() {
    let mut manifest = made(&[(1, 1), (1, 1)]);
    manifest.experts.high.steps = vec!["stage_0".to_string(), "stage_1".to_string()];
    manifest.stages.iter_mut().for_each(|stage| stage.peak_memory_bytes = Some(u64::MAX));
    assert!(fits(&manifest, 0, MemoryInfo { free: GIB, total: GIB }).is_err());
}

#[test]
fn memory_that_others_use_is_named() {
    assert_eq!(
        refusal(&[(28, 18)], 27, 80),
        "stage stage_0 needs 28.00 GiB of GPU memory, 27.00 of 80.00 GiB are free\n\
         hint: close what else uses this GPU: nvidia-smi lists it"
    );
}

#[test]
fn weights_that_do_not_fit_are_named() {
    for free in [9, 10] {
        let text = refusal(&[(28, 18)], free, 12);
        assert!(
            text.ends_with("hint: its weights alone take 10.00 GiB: use a GPU with more memory"),
            "{text}"
        );
    }
}

#[test]
fn frames_that_would_fit_are_suggested() {
    // 18 GiB for 9 latent frames are 2 for each.
    for (free, frames) in [(27, 29), (20, 17), (13, 1), (12, 1)] {
        assert_eq!(
            refusal(&[(28, 18)], free, 27),
            format!(
                "stage stage_0 needs 28.00 GiB of GPU memory, {free}.00 of 27.00 GiB are free\n\
                 hint: about --size 208x112 --frames {frames} would fit: compile it so, or use a GPU with more memory"
            )
        );
    }
    let text = refusal(&[(28, 18)], 11, 27);
    assert!(text.contains("hint: one frame of 208x112 is too large already"), "{text}");
}

#[test]
fn only_the_stages_of_the_video_count_and_one_that_fits_is_named() {
    let mut manifest = made(&[(8, 2), (28, 18), (12, 6)]);
    let mut shape = manifest.videos[0].clone();
    (shape.frames, shape.latent[1], shape.tokens) = (9, 3, 273);
    manifest.videos.push(shape.clone());
    manifest.videos.push(turbo_engine_file::Video { frames: 1, tokens: 91, ..shape });
    // The first serves all three, the second the first video, the third the second one.
    (manifest.stages[1].video, manifest.stages[2].video) = (Some(0), Some(1));
    assert_eq!([0, 1, 2].map(|video| arena_bytes(&manifest, video) / GIB), [18, 6, 2]);
    assert_eq!([0, 1, 2].map(|video| peak_bytes(&manifest, video).unwrap() / GIB), [28, 12, 8]);
    let said = |video, free, total| {
        let memory = MemoryInfo { free: free * GIB, total: total * GIB };
        fits(&manifest, video, memory).err().map_or_else(String::new, |error| error.to_string())
    };
    assert_eq!(said(1, 12, 12), "");
    assert_eq!(said(2, 8, 12), "");
    let hint = |video, free, total| {
        let text = said(video, free, total);
        text.split_once("hint: ").unwrap().1.to_string()
    };
    assert_eq!(
        hint(0, 20, 24),
        "--size 208x112 --frames 9 of this engine file fits; otherwise about --size 208x112 --frames 17 would fit: \
         compile it so, or use a GPU with more memory"
    );
    assert_eq!(
        hint(0, 20, 80),
        "--size 208x112 --frames 9 of this engine file fits; otherwise close what else uses this GPU: nvidia-smi \
         lists it"
    );
    assert!(
        hint(1, 11, 11).starts_with("--size 208x112 --frames 1 of this engine file fits; otherwise about")
    );
    assert!(!hint(2, 7, 7).contains("of this engine file"));
}
