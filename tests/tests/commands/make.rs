//! What the commands make of good and bad arguments.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use turbo_engine_file::EngineFile;
use turbo_media::load_image;
use turbo_sampler::NoiseKind;
use turbo_tests::vectors;

/// Frames of a GIF, counted block by block.
fn gif_frames(bytes: &[u8]) -> usize {
    let palette = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let (mut at, mut frames) = (13 + palette(bytes[10]), 0);
    loop {
        match bytes[at] {
            0x2c => {
                at += 11 + palette(bytes[at + 9]);
                frames += 1;
            }
            0x21 => at += 2,
            end => {
                assert_eq!((end, at + 1), (0x3b, bytes.len()), "no block of a GIF");
                return frames;
            }
        }
        while bytes[at] != 0 {
            at += 1 + usize::from(bytes[at]);
        }
        at += 1;
    }
}

/// Frames of an animated WebP and how long they last together, in milliseconds.
fn webp_frames(bytes: &[u8]) -> (usize, usize) {
    let number = |at: usize, len: usize| (0..len).fold(0, |n, i| n | usize::from(bytes[at + i]) << (8 * i));
    let (mut at, mut frames, mut time) = (12, 0, 0);
    assert_eq!(number(4, 4) + 8, bytes.len());
    while at < bytes.len() {
        if &bytes[at..at + 4] == b"ANMF" {
            frames += 1;
            time += number(at + 8 + 12, 3);
        }
        at += 8 + number(at + 4, 4).next_multiple_of(2);
    }
    (frames, time)
}

#[test]
fn every_format_holds_every_frame() {
    if !can_run() {
        return;
    }
    let [count, height, width] = SMALL;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["out.mp4", "out.gif", "out.webp", "out.safetensors", "frames"] {
        succeeds(turbo_run(small(), &at(name)).arg("--no-cache").arg("--contact-sheet").arg(at("sheet.png")));
        let sheet = load_image(&at("sheet.png")).unwrap();
        assert!(sheet.width >= width && sheet.height >= height, "{} x {}", sheet.width, sheet.height);
        fs::remove_file(at("sheet.png")).unwrap();
    }
    assert_eq!(files(folder.path()), ["frames", "out.gif", "out.mp4", "out.safetensors", "out.webp"]);
    let bytes = |name: &str| fs::read(at(name)).unwrap();

    let mp4 = bytes("out.mp4");
    assert_eq!(&mp4[4..8], b"ftyp");
    let sizes = mp4.windows(4).position(|w| w == b"stsz").unwrap();
    assert_eq!(mp4[sizes + 12..sizes + 16], (count as u32).to_be_bytes());

    let gif = bytes("out.gif");
    assert!(gif.starts_with(b"GIF89a"));
    assert_eq!(gif_frames(&gif), count);

    let webp = bytes("out.webp");
    assert!(webp.starts_with(b"RIFF") && &webp[8..12] == b"WEBP");
    let (frames, time) = webp_frames(&webp);
    // Equal frames are stored as one that lasts longer; 16 are a second.
    assert!((1..=count).contains(&frames) && time.abs_diff(count * 1000 / 16) <= 1, "{frames} in {time} ms");

    let raw = bytes("out.safetensors");
    let raw = SafeTensors::deserialize(&raw).unwrap();
    let raw = raw.tensor("frames").unwrap();
    assert_eq!((raw.dtype(), raw.shape()), (Dtype::U8, &[count, height, width, 3][..]));

    // Both are lossless.
    assert_eq!(files(&at("frames")), ["0000.png", "0001.png", "0002.png", "0003.png", "0004.png"]);
    for (name, expected) in files(&at("frames")).iter().zip(raw.data().chunks(height * width * 3)) {
        let picture = load_image(&at("frames").join(name)).unwrap();
        assert_eq!((picture.width, picture.height), (width, height));
        assert!(picture.rgb == expected, "{name} is not the frame of the safetensors file");
    }
}

#[test]
fn a_contact_sheet_that_cannot_be_written_is_said_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = turbo_run(large(), &folder.path().join("out.mp4"));
    let start = Instant::now();
    let done = command.args(["--no-cache", "--contact-sheet", "/no/such/folder/sheet.png"]).output().unwrap();
    refused(&done, 4, &["/no/such/folder"]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    empty(folder.path());
}

/// Writes tensors of f32.
fn write_noise(path: &Path, tensors: &BTreeMap<&str, Vec<f32>>) {
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|v| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.keys().zip(&bytes);
    let views = views.map(|(name, b)| (*name, TensorView::new(Dtype::F32, vec![b.len() / 4], b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn noise_from_a_file_is_taken_as_it_is() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let elements: usize =
        EngineFile::open(small()).unwrap().manifest().videos[0].latent.iter().map(|&d| d as usize).product();
    let mut source = NoiseKind::Portable.source(7).unwrap();
    let mut draw = |name| (name, source.draw(elements).unwrap());
    let mut noise = BTreeMap::from([draw("noise_init"), draw("noise0")]);
    write_noise(&at("noise.safetensors"), &noise);
    let option = format!("file:{}", at("noise.safetensors").display());
    let run = |output: &str, option: &str, seed: &str| {
        let mut command = turbo_run(small(), &at(output));
        command.args(["--no-cache", "--noise", option, "--seed", seed]).output().unwrap()
    };
    // The same numbers as of seed 7, so the same video; the seed beside a file means nothing.
    assert!(run("file.safetensors", &option, "3").status.success());
    assert!(run("seed.safetensors", "portable", "7").status.success());
    assert_eq!(fs::read(at("file.safetensors")).unwrap(), fs::read(at("seed.safetensors")).unwrap());

    noise.remove("noise0");
    write_noise(&at("noise.safetensors"), &noise);
    refused(&run("out.mp4", &option, "0"), 3, &["noise.safetensors", "'noise0' is missing"]);
    noise.insert("noise_init", vec![0.0; 3]);
    write_noise(&at("noise.safetensors"), &noise);
    refused(&run("out.mp4", &option, "0"), 3, &["noise_init", "[3]", &elements.to_string()]);
    assert_eq!(files(folder.path()), ["file.safetensors", "noise.safetensors", "seed.safetensors"]);
}

#[test]
fn a_bad_noise_file_is_a_bad_input_file() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for path in [Path::new("/no/such/noise.safetensors"), small()] {
        let mut command = turbo_run(small(), &folder.path().join("out.mp4"));
        let done = command.arg("--noise").arg(format!("file:{}", path.display())).output().unwrap();
        refused(&done, 3, &[path.to_str().unwrap()]);
    }
}

#[test]
fn prompts_that_are_empty_or_too_long() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.gif");
    for prompt in ["", "\t\n", "\u{a0}\u{3000}"] {
        let mut command = Command::new(binary("turbo-run"));
        let done = command.arg(small()).args(["-p", prompt, "-o"]).arg(&output).output().unwrap();
        refused(&done, 2, &["the prompt is empty"]);
        empty(folder.path());
    }
    let long = "circle ".repeat(600);
    let run = |more: &str| {
        let mut command = Command::new(binary("turbo-run"));
        command.arg(small()).args(["-p", &long, "--no-cache", more, "-o"]).arg(&output);
        succeeds(&mut command)
    };
    assert!(text(&run("-v").stderr).contains("warning: the prompt is"));
    let quiet = run("--quiet");
    assert_eq!((text(&quiet.stdout), text(&quiet.stderr)), (String::new(), String::new()));
    let report = run("--json");
    assert_eq!(text(&report.stderr), "");
    // What is not said as a warning is in the report.
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["cut"].as_str().unwrap().ends_with("circle"), "{report}");
}

#[test]
fn quiet_compiles_print_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let done = succeeds(compile(&folder.path().join("engine.plan")).arg("--quiet"));
    assert_eq!((text(&done.stdout), text(&done.stderr)), (String::new(), String::new()));
}

#[test]
fn reports_account_for_the_time_and_for_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = |value: &Value| value.as_f64().unwrap();
    // Half is for machines that are busy: what is in no part is only the freeing of memory.
    let done = succeeds(compile(&folder.path().join("engine.plan")).arg("--json"));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let sum: f64 = report["seconds"].as_array().unwrap().iter().map(|lap| seconds(&lap[1])).sum();
    let total = seconds(&report["total_seconds"]);
    assert!(sum <= total && sum >= 0.5 * total, "{sum} of {total}");
    if !can_run() {
        return;
    }
    for cached in [false, true] {
        let mut command = turbo_run(small(), &folder.path().join("out.mp4"));
        let start = Instant::now();
        let done = succeeds(command.arg("--json").arg("--cache-dir").arg(folder.path().join("cache")));
        let wall = start.elapsed().as_secs_f64();
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(report["cached_embedding"], cached);
        let parts = report["parts"].as_array().unwrap();
        let encodes = parts.iter().any(|p| p["part"] == "text encoder");
        assert_eq!(encodes, !cached, "{report}");
        let sum: f64 = parts.iter().map(|part| seconds(&part["seconds"])).sum();
        let [inner, open, encode, whole] =
            ["total_seconds", "open_seconds", "encode_seconds", "prompt_to_file_seconds"]
                .map(|name| seconds(&report[name]));
        assert!(sum <= inner && sum >= 0.5 * inner, "{sum} of {inner}");
        assert!(open + inner + encode <= whole && whole <= wall, "{open} {inner} {encode} {whole} {wall}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        succeeds(turbo_run(small(), &output).args(["--no-cache", "--steps", "2"]).args(more));
        fs::read(output).unwrap()
    };
    let first = run("a.safetensors", &["--threads", "1"]);
    assert!(run("b.safetensors", &["--threads", "1"]) == first, "two runs of a seed differ");
    assert!(run("c.safetensors", &["--threads", "2"]) == first, "two threads give another video than one");
    assert!(run("d.safetensors", &["--threads", "2", "--seed", "1"]) != first, "the seed means nothing");
}

#[test]
fn a_video_is_the_same_beside_others_as_alone() {
    if !can_run() {
        return;
    }
    let [count, height, width] = SMALL;
    let folder = tempfile::tempdir().unwrap();
    let run = |engine: &Path, name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        let done = succeeds(turbo_run(engine, &output).args(["--no-cache", "--json"]).args(more));
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        (fs::read(output).unwrap(), report)
    };
    let (alone, _) = run(small(), "alone.safetensors", &[]);
    let (chosen, report) = run(four(), "chosen.safetensors", &["--size", "96x64", "--frames", "5"]);
    assert!(chosen == alone, "the same seed gives another video");
    assert_eq!((&report["size"], &report["frames"]), (&"96x64".into(), &5.into()));

    // What is left open is the first that fits.
    let shape = |more: &[&str]| {
        let (bytes, _) = run(four(), "shape.safetensors", more);
        SafeTensors::deserialize(&bytes).unwrap().tensor("frames").unwrap().shape().to_vec()
    };
    assert_eq!(shape(&[]), [9, width, height, 3]);
    assert_eq!(shape(&["--frames", "5"]), [5, width, height, 3]);
    assert_eq!(shape(&["--size", "96x64"]), [9, height, width, 3]);
    assert_eq!(shape(&["--size", "96x64", "--frames", "5"]), [count, height, width, 3]);
}

#[test]
fn a_transformer_in_parts_gives_the_same_video() {
    if !can_run() {
        return;
    }
    static ENGINE: OnceLock<PathBuf> = OnceLock::new();
    let same = ["--size", "96x64", "--frames", "5", "--topk", "1", "--steps", "1"];
    let parts = engine(&ENGINE, "commands-parts.plan", &[&same[..], &["--parts", "3"]].concat());
    let file = EngineFile::open(parts).unwrap();
    assert_eq!(file.manifest().experts.high.steps, ["dit_1of3", "dit_2of3", "dit_3of3"]);
    let folder = tempfile::tempdir().unwrap();
    let run = |engine: &Path, name: &str| {
        let output = folder.path().join(name);
        succeeds(turbo_run(engine, &output).args(["--no-cache", "--steps", "2"]));
        fs::read(output).unwrap()
    };
    assert!(run(parts, "parts.safetensors") == run(small(), "whole.safetensors"));

    let many = compile(&folder.path().join("many.plan")).args(["--parts", "99"]).output().unwrap();
    refused(&many, 2, &["99 parts of a transformer of", "give 1 to"]);
}

#[test]
fn a_video_that_the_engine_file_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (choices, asked) in [
        (&["--size", "96x96"][..], "--size 96x96"),
        (&["--frames", "7"], "--frames 7"),
        (&["--size", "96x64", "--frames", "13"], "--size 96x64 --frames 13"),
    ] {
        let done = turbo_run(four(), &folder.path().join("out.mp4")).args(choices).output().unwrap();
        let has = "--size 64x96 --frames 9, --size 64x96 --frames 5, --size 96x64 --frames 9, --size 96x64 --frames 5";
        refused(&done, 2, &[&format!("no video of {asked}, only of {has}\nhint: ")]);
        empty(folder.path());
    }
    let done = turbo_run(four(), &folder.path().join("out.mp4")).args(["--size", "96"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(text(&done.stderr).contains("`96` is not a size; write it as 832x480"));
}

/// One bit in the middle of every entry, and an end at every entry's start: some of it is found only when the
/// stage is loaded, after frames have been made.
#[test]
fn damage_anywhere_in_an_engine_file_is_found() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.plan");
    let output = folder.path().join("out.mp4");
    let whole = fs::read(small()).unwrap();
    let engine = EngineFile::open(small()).unwrap();
    for entry in &engine.manifest().entries {
        let range = engine.range(&entry.path).unwrap();
        let mut flipped = whole.clone();
        flipped[range.start + range.len() / 2] ^= 1;
        for (kind, bytes) in [("flipped", &flipped[..]), ("cut", &whole[..range.start])] {
            fs::write(&damaged, bytes).unwrap();
            let done = turbo_run(&damaged, &output).arg("--no-cache").output().unwrap();
            assert!(!done.status.success(), "{}: {kind} and not found", entry.path);
            refused(&done, 3, &["damaged.plan"]);
            assert_eq!(files(folder.path()), ["damaged.plan"], "{}: {kind}", entry.path);
        }
    }
}

#[test]
fn sizes_and_frame_counts_name_the_nearest_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (choices, says) in [
        (["--size", "0x0"], &["0x0"][..]),
        (["--size", "100x60"], &["the nearest that fits is 96x64"]),
        (["--frames", "0"], &["0 frames"]),
        (["--frames", "7"], &["5 and 9"]),
        (["--topk", "0.07"], &["keeps none", "--topk 0.08"]),
        (["--topk", "0"], &["top-k ratio 0"]),
    ] {
        let done = compile(&folder.path().join("engine.plan")).args(choices).output().unwrap();
        refused(&done, 2, says);
        empty(folder.path());
    }
}

/// Checkpoints are never the place of an engine file.
#[test]
fn an_output_that_is_an_input_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["config.json", "dit.safetensors", "text_encoder.safetensors", "tokenizer.json", "vae.safetensors"]
    {
        fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    let output = folder.path().join("dit.safetensors");
    let before = fs::read(&output).unwrap();
    let mut command = Command::new(binary("turbo-compile"));
    let done = command.arg(folder.path()).arg("-o").arg(&output).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", text(&done.stderr));
    assert!(fs::read(&output).unwrap() == before, "the checkpoint is gone");
}

#[test]
fn a_recipe_that_cannot_be_saved_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("recipe")).unwrap();
    let mut command = compile(&folder.path().join("engine.plan"));
    let done = command.arg("--save-recipe").arg(folder.path().join("recipe")).output().unwrap();
    refused(&done, 4, &["recipe"]);
    assert_eq!(files(folder.path()), ["recipe"]);
}

#[test]
fn an_image_becomes_a_video() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for (name, to) in [
        ("dit_i2v_high_ckpt.safetensors", "high.safetensors"),
        ("dit_i2v_low_ckpt.safetensors", "low.safetensors"),
        ("umt5_ckpt.safetensors", "umt5.safetensors"),
        ("vae_ckpt.safetensors", "vae.safetensors"),
        ("tokenizer/tokenizer.json", "tokenizer.json"),
    ] {
        let Some(from) = vectors::file(name) else { return };
        fs::copy(from, model.join(to)).unwrap();
    }
    let engine = folder.path().join("engine.plan");
    let mut command = Command::new(binary("turbo-compile"));
    command.arg(&model).arg("-o").arg(&engine).args(["--attention", "dense", "--linear", "bf16"]);
    succeeds(command.args(["--size", "64x48", "--frames", "5"]));

    let place = folder.path().join("videos");
    fs::create_dir(&place).unwrap();
    let run = |image: Option<&Path>| {
        let mut command = turbo_run(&engine, &place.join("out.safetensors"));
        command.arg("--no-cache").args(image.iter().flat_map(|path| [Path::new("-i"), path]));
        command.output().unwrap()
    };
    refused(&run(None), 2, &["--image"]);
    refused(&run(Some(Path::new("/no/such/picture.png"))), 3, &["/no/such/picture.png"]);
    refused(&run(Some(&model)), 3, &["model", "a folder"]);
    refused(&run(Some(&engine)), 3, &["engine.plan", "expected PNG"]);
    let picture = demo().join("truth/00.png");
    let half = folder.path().join("half.png");
    let bytes = fs::read(&picture).unwrap();
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    refused(&run(Some(&half)), 3, &["half.png"]);
    empty(&place);

    let done = run(Some(&picture));
    assert!(done.status.success(), "{}", text(&done.stderr));
    let bytes = fs::read(place.join("out.safetensors")).unwrap();
    let video = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(video.tensor("frames").unwrap().shape(), [5, 48, 64, 3]);
}
