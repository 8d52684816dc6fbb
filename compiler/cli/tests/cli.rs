//! Whole runs of turbo-compile: what it makes, and what it says of bad input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise"
)]

mod model;

use model::{Model, Tensor, command, demo};
use serde_json::Value;
use turbo_compile::choices::Target;
use turbo_compile::engines::tiling;
use turbo_compile::{Choices, Inputs, Prepared};
use turbo_engine_file::EngineFile;

#[test]
fn the_demo_compiles_with_the_model_folder_alone() {
    let model = Model::new();
    let run = model.compile(&["--json"]);
    let engine = EngineFile::open(&run.engine()).unwrap();
    engine.verify().unwrap();
    let m = engine.manifest();
    assert_eq!(
        (m.videos[0].width, m.videos[0].height, m.videos[0].frames, m.videos[0].fps),
        (208, 112, 33, 16)
    );
    assert_eq!((m.videos[0].latent, m.videos[0].tokens), ([16, 9, 14, 26], 819));
    assert_eq!((m.model.dim, m.model.heads, m.model.layers, m.model.ffn_dim), (256, 2, 8, 1024));
    let names: Vec<&str> = m.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["text_encoder", "dit_context", "dit", "vae_decoder_first", "vae_decoder"]);
    let recipe = serde_json::to_value(&m.recipe).unwrap();
    assert_eq!(recipe["attention"]["kind"], "sagesla");
    assert_eq!(m.videos[0].keep_blocks, Some(3));
    assert_eq!(recipe["linear"], "w8a8");
    let report: Value = serde_json::from_str(&run.stdout()).unwrap();
    assert_eq!(report["choices"]["size"], "208x112");
    assert!(report["total_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn quantised_weights_take_at_most_055_of_the_bf16_file() {
    let model = Model::new();
    let engine = EngineFile::open(&model.compile(&[]).engine()).unwrap();
    let weights = engine.manifest().entries.iter().find(|e| e.path == "weights/dit.safetensors").unwrap();
    let bf16 = std::fs::metadata(demo().join("dit.safetensors")).unwrap().len();
    assert!(weights.bytes as f64 <= 0.55 * bf16 as f64, "{} of {bf16}", weights.bytes);
}

#[test]
fn fp8_weights_take_the_place_of_int8_ones() {
    let model = Model::new();
    let int8 = EngineFile::open(&model.compile(&[]).engine()).unwrap();
    let fp8 = EngineFile::open(&model.compile(&["--linear", "fp8"]).engine()).unwrap();
    assert_eq!(serde_json::to_value(&fp8.manifest().recipe).unwrap()["linear"], "fp8");
    assert_eq!(fp8.manifest().model.parameters, int8.manifest().model.parameters);
    let weights = |file: &EngineFile, leaf: &str| {
        let bytes = file.bytes("weights/dit.safetensors").unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        header[format!("blocks.0.ffn.0.{leaf}")].clone()
    };
    let (int8_weight, fp8_weight) = (weights(&int8, "int8_weight"), weights(&fp8, "fp8_weight"));
    assert_eq!((&fp8_weight["dtype"], &fp8_weight["shape"]), (&int8_weight["dtype"], &int8_weight["shape"]));
    assert!(weights(&fp8, "int8_weight").is_null() && weights(&int8, "fp8_weight").is_null());
}

#[test]
fn the_same_choices_give_the_same_bytes() {
    let (a, b) = (Model::new(), Model::new());
    let recipe = a.path("recipe.yaml");
    let first = a.compile(&["--save-recipe", recipe.to_str().unwrap(), "--topk", "0.5", "--steps", "2"]);
    let mut second = command();
    second.args(["--recipe", recipe.to_str().unwrap(), "-o", b.path("again.plan").to_str().unwrap()]);
    let second = second.output().unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(std::fs::read(first.engine()).unwrap(), std::fs::read(b.path("again.plan")).unwrap());
}

/// Two sizes with two frame counts each.
const FOUR: [&str; 6] = ["--size", "96x64,64x96", "--frames", "5,1", "--topk", "1"];

#[test]
fn sizes_and_frame_counts_share_what_does_not_depend_on_them() {
    let model = Model::new();
    let alone = model.compile(&["--size", "96x64", "--frames", "5", "--topk", "1"]).engine();
    let alone = (std::fs::metadata(&alone).unwrap().len(), EngineFile::open(&alone).unwrap());
    let engine = model.compile(&FOUR).engine();
    let bytes = std::fs::metadata(&engine).unwrap().len();
    let engine = EngineFile::open(&engine).unwrap();
    engine.verify().unwrap();
    let m = engine.manifest();
    let videos: Vec<_> = m.videos.iter().map(|v| (v.width, v.height, v.frames, v.keep_blocks)).collect();
    assert_eq!(
        videos,
        [(96, 64, 5, Some(1)), (96, 64, 1, Some(1)), (64, 96, 5, Some(1)), (64, 96, 1, Some(1))]
    );
    let stages: Vec<_> = m.stages.iter().map(|s| (s.name.as_str(), s.video, s.graph.as_str())).collect();
    assert_eq!(
        stages,
        [
            ("text_encoder", None, "text_encoder.onnx"),
            ("dit_context", None, "dit_context.onnx"),
            ("dit", Some(0), "dit-96x64x5.onnx"),
            ("dit", Some(1), "dit-96x64x1.onnx"),
            ("dit", Some(2), "dit-64x96x5.onnx"),
            ("dit", Some(3), "dit-64x96x1.onnx"),
            ("vae_decoder_first", Some(0), "vae_decoder_first-96x64.onnx"),
            ("vae_decoder_first", Some(1), "vae_decoder_first-96x64.onnx"),
            ("vae_decoder", Some(0), "vae_decoder-96x64.onnx"),
            ("vae_decoder", Some(1), "vae_decoder-96x64.onnx"),
            ("vae_decoder_first", Some(2), "vae_decoder_first-64x96.onnx"),
            ("vae_decoder_first", Some(3), "vae_decoder_first-64x96.onnx"),
            ("vae_decoder", Some(2), "vae_decoder-64x96.onnx"),
            ("vae_decoder", Some(3), "vae_decoder-64x96.onnx"),
        ]
    );
    // The weights once, and a few graphs more.
    let weights = |m: &turbo_engine_file::Manifest| -> Vec<(String, String)> {
        let entries = m.entries.iter().filter(|e| e.path.starts_with("weights/"));
        entries.map(|e| (e.path.clone(), e.sha256.clone())).collect()
    };
    assert_eq!(weights(m), weights(alone.1.manifest()));
    assert!((bytes as f64) < 1.1 * alone.0 as f64, "{bytes} against {} of one size", alone.0);
}

#[test]
fn a_stage_that_serves_every_video_is_not_named_after_one() {
    let model = Model::new();
    let engine =
        model.compile(&["--size", "96x64", "--frames", "5", "--frames", "1", "--topk", "1"]).engine();
    let engine = EngineFile::open(&engine).unwrap();
    let graph = |name, video| engine.manifest().stage(name, video).unwrap().graph.clone();
    assert_eq!([graph("vae_decoder", 0), graph("vae_decoder", 1)], ["vae_decoder.onnx", "vae_decoder.onnx"]);
    assert_eq!([graph("dit", 0), graph("dit", 1)], ["dit-96x64x5.onnx", "dit-96x64x1.onnx"]);
}

#[test]
fn weights_are_stored_in_one_form_for_every_size() {
    let choices = Choices {
        model: Some(demo()),
        target: Some(Target::Trt),
        size: vec!["96x64".parse().unwrap(), "64x96".parse().unwrap()],
        frames: vec![5, 1],
        topk: Some(1.0),
        ..Choices::default()
    };
    let inputs = Inputs::gather(&choices).unwrap();
    assert_eq!(Prepared::new(&choices, &inputs, tiling((9, 0))).unwrap().stages.len(), 10);
}

#[test]
fn the_gpu_decides_on_a_tiling_that_nobody_else_does() {
    let (hopper, other) = (tiling((9, 0)), tiling((12, 0)));
    assert_eq!([hopper.block_q, hopper.block_k, other.block_q, other.block_k], [64, 128, 128, 64]);
    let mut choices = Choices { model: Some(demo()), ..Choices::default() };
    let mut inputs = Inputs::gather(&choices).unwrap();
    let found = |choices: &Choices, inputs: &Inputs| {
        Prepared::new(choices, inputs, hopper).unwrap().plan.recipe.tiling
    };
    assert_eq!(found(&choices, &inputs), other, "config.json says 128x64");
    inputs.config = None;
    assert_eq!(found(&choices, &inputs), hopper);
    choices.tiling = Some(other);
    assert_eq!(found(&choices, &inputs), other);
}

#[test]
fn recipes_hold_one_value_or_a_list() {
    let model = Model::new();
    let recipe = model.path("recipe.yaml");
    let path = recipe.to_str().unwrap();
    let first = model.compile(&[&FOUR[..], &["--save-recipe", path]].concat()).engine();
    let first = std::fs::read(first).unwrap();
    let choices = Choices::read(&recipe).unwrap();
    assert_eq!(choices.size.iter().map(ToString::to_string).collect::<Vec<_>>(), ["96x64", "64x96"]);
    assert_eq!(choices.frames, [5, 1]);
    let second = model.compile(&["--recipe", path]).engine();
    assert!(std::fs::read(second).unwrap() == first, "the recipe makes another file");

    let read = |text: &str| {
        std::fs::write(&recipe, text).unwrap();
        Choices::read(&recipe).map(|choices| (choices.size.len(), choices.frames))
    };
    assert_eq!(read("size: 96x64\nframes: 5\n").unwrap(), (1, vec![5]));
    assert_eq!(read("size: [96x64, 64x96]\nframes:\n- 5\n- 1\n").unwrap(), (2, vec![5, 1]));
    assert_eq!(read("steps: 2\n").unwrap(), (0, vec![]));
    for (text, says) in [
        ("size: [96x64, 64]\n", "`64` is not a size"),
        ("size: wide\n", "`wide` is not a size"),
        ("frames: [5, many]\n", "line 1"),
        ("frames: -5\n", "line 1"),
        ("frames: {a: 1}\n", "a value or a list of values"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn inspect_shows_what_is_inside() {
    let model = Model::new();
    let engine = model.compile(&["--licence", "Apache-2.0"]).engine();
    let text = command().arg("inspect").arg(&engine).output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "208x112, 33 frames",
        "dit_context",
        "TurboSageSla",
        "weights/dit.safetensors",
        "Apache-2.0",
        "sha256",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let json = command().arg("inspect").arg(&engine).args(["--json", "--verify"]).output().unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["schema"], turbo_engine_file::SCHEMA);
    let engine = model.compile(&FOUR).engine();
    let text = command().arg("inspect").arg(&engine).output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in ["96x64, 5 frames at", "64x96, 1 frames at", "for 64x96, 1 frames"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn onnx_files_and_weights_are_emitted_on_demand() {
    let model = Model::new();
    let folder = model.path("onnx");
    model.compile(&["--emit-onnx", folder.to_str().unwrap(), "--flavor", "standard"]).engine();
    for name in ["dit.onnx", "vae_decoder.onnx", "weights/dit.safetensors", "tokenizer.json"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    let model = Model::new();
    let folder = model.path("four");
    model.compile(&[&FOUR[..], &["--emit-onnx", folder.to_str().unwrap()]].concat()).engine();
    let names = ["text_encoder", "dit_context", "dit-96x64x5", "dit-64x96x1", "vae_decoder_first-64x96"];
    for name in names {
        assert!(folder.join(format!("{name}.onnx")).is_file(), "{name}");
    }
}

#[test]
fn choices_that_do_not_fit_are_refused_with_the_nearest_that_do() {
    let model = Model::new();
    model.compile(&["--size", "210x112"]).refused(2, &["210x112", "the nearest that fits is 208x112"]);
    model.compile(&["--frames", "32"]).refused(2, &["32 frames", "29 and 33"]);
    model.compile(&["--topk", "0.05"]).refused(
        2,
        &["13 key blocks keeps none", "hint: at 208x112 with 33 frames the least is --topk 0.08"],
    );
    model
        .compile(&["--topk", "0.08", "--frames", "33,29"])
        .refused(2, &["12 key blocks keeps none", "at 208x112 with 29 frames the least is --topk 0.09"]);
    model
        .compile(&["--size", "96x64,208x112,96x64"])
        .refused(2, &["96x64 with 33 frames is asked for twice"]);
    model.compile(&["--frames", "33", "--frames", "32"]).refused(2, &["32 frames", "29 and 33"]);
    model.compile(&["--topk", "1.5"]).refused(2, &["top-k ratio 1.5"]);
    model.compile(&["--steps", "5"]).refused(2, &["5 steps", "1 to 4"]);
    let nothing = command().output().unwrap();
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no model is given"));
    let typo = command().args(["x", "--atention", "sla"]).output().unwrap();
    assert_eq!(typo.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&typo.stderr).contains("--attention"));
}

#[test]
fn every_tensor_is_accounted_for() {
    let model = Model::new();
    model.edit("dit.safetensors", |t| drop(t.remove("blocks.3.cross_attn.o.bias")));
    model.compile(&[]).refused(3, &["dit.safetensors", "blocks.3.cross_attn.o.bias is missing"]);

    let model = Model::new();
    model.edit("dit.safetensors", |t| {
        let proj = t["blocks.0.self_attn.attn_op.local_attn.proj_l.weight"].clone();
        t.insert("blocks.0.self_attn.proj_linear.weight".to_string(), proj);
    });
    model.compile(&[]).refused(3, &["blocks.0.self_attn.proj_linear.weight", "has no place"]);

    let model = Model::new();
    model.edit("vae.safetensors", |t| {
        let (dtype, _, bytes) = t["decoder.conv1.weight"].clone();
        t.insert("decoder.conv1.weight".to_string(), (dtype, vec![bytes.len() / 2], bytes));
    });
    model.compile(&[]).refused(3, &["vae.safetensors"]);
}

#[test]
fn damaged_checkpoints_are_refused() {
    let model = Model::new();
    let bytes = std::fs::read(model.path("dit.safetensors")).unwrap();
    std::fs::write(model.path("dit.safetensors"), &bytes[..bytes.len() - 1000]).unwrap();
    model.compile(&[]).refused(3, &["dit.safetensors"]);

    let model = Model::new();
    model.edit("dit.safetensors", |t| {
        let (_, _, bytes) = t.get_mut("blocks.2.ffn.0.weight").unwrap();
        bytes[10..12].copy_from_slice(&0x7fc0u16.to_le_bytes());
    });
    model.compile(&[]).refused(3, &["blocks.2.ffn.0.weight"]);

    let model = Model::new();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(model.path("config.json")).unwrap()).unwrap();
    for block in [0, 48] {
        config["sla"]["block_k"] = block.into();
        std::fs::write(model.path("config.json"), config.to_string()).unwrap();
        let found = format!("attention blocks of 128 queries and {block} keys");
        model.compile(&[]).refused(2, &[&found, "whole multiples of 32"]);
    }
    std::fs::write(model.path("config.json"), "{").unwrap();
    model.compile(&[]).refused(3, &["config.json", "not JSON"]);

    let model = Model::new();
    std::fs::write(model.path("tokenizer.json"), "{}").unwrap();
    model.compile(&[]).refused(3, &["tokenizer.json"]);
}

#[test]
fn wrong_and_mixed_checkpoints_are_named() {
    // A LoRA given as a model.
    let model = Model::new();
    let file = model.path("lora.safetensors");
    let tensor: Tensor = ("BF16".to_string(), vec![4, 4], vec![0; 32]);
    let names = ["blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight"];
    model::write(&file, &names.iter().map(|n| (n.to_string(), tensor.clone())).collect());
    let run = command().arg(&file).output().unwrap();
    assert_eq!(run.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&run.stderr).contains("this is a LoRA"));

    // The same network twice, as both experts.
    let model = Model::new();
    std::fs::copy(model.path("dit.safetensors"), model.path("low.safetensors")).unwrap();
    std::fs::rename(model.path("dit.safetensors"), model.path("high.safetensors")).unwrap();
    model.compile(&[]).refused(3, &["holds the same weights as"]);

    // Two high-noise experts.
    let model = Model::new();
    std::fs::copy(model.path("dit.safetensors"), model.path("high_a.safetensors")).unwrap();
    std::fs::rename(model.path("dit.safetensors"), model.path("high_b.safetensors")).unwrap();
    model.compile(&[]).refused(2, &["both speak of the high-noise expert", "--low-noise"]);

    // A VAE where the text encoder should be.
    let model = Model::new();
    let vae = model.path("vae.safetensors");
    model
        .compile(&["--text-encoder", vae.to_str().unwrap()])
        .refused(3, &["this is a VAE, --text-encoder takes a text encoder"]);

    // Nothing there.
    let model = Model::new();
    std::fs::remove_file(model.path("vae.safetensors")).unwrap();
    model.compile(&[]).refused(2, &["no VAE was found", "--vae FILE"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_at_once() {
    let model = Model::new();
    let run = command().arg(model.0.path()).args(["-o", "/no/such/folder/engine.plan"]).output().unwrap();
    assert_eq!(run.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&run.stderr).contains("/no/such/folder"));
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    for arguments in [&["completions", "bash"][..], &["completions", "zsh"], &["man"]] {
        let run = command().args(arguments).output().unwrap();
        assert!(run.status.success());
        assert!(String::from_utf8_lossy(&run.stdout).contains("turbo-compile"));
    }
}
