use serde_json::{Value, json};

use super::*;

const SAMPLE: &str = include_str!("../../tests/sample.json");

fn sample() -> Value {
    serde_json::from_str(SAMPLE).unwrap()
}

/// The sample with the value at `pointer` replaced, or removed where `value` is `None`.
fn changed(pointer: &str, value: Option<Value>) -> Vec<u8> {
    let mut manifest = sample();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = manifest.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Some(value)) => drop(map.insert(key.into(), value)),
        (Value::Object(map), None) => drop(map.shift_remove(key).unwrap()),
        (Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value,
        (Value::Array(list), None) => drop(list.remove(key.parse().unwrap())),
        _ => panic!("{pointer} has no parent"),
    }
    serde_json::to_vec(&manifest).unwrap()
}

#[test]
fn the_sample_is_accepted_and_survives_a_round_trip() {
    let manifest = parse_manifest(SAMPLE.as_bytes()).unwrap();
    assert_eq!(manifest.videos[0].latent_mean, [-0.7571, 0.1]);
    assert_eq!(manifest.stage("dit_high", 0).unwrap().peak_memory_bytes, Some(123_456_789));
    let again = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(parse_manifest(&again).unwrap(), manifest);
    assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), sample(), "no field is added or lost");
}

#[test]
fn every_recipe_can_be_written() {
    for attention in [
        json!({"kind": "dense"}),
        json!({"kind": "sage", "block_q": 64, "block_k": 64, "pv": "fp8"}),
        json!({"kind": "sla", "topk": 1.0, "block_q": 64, "block_k": 64}),
        json!({"kind": "sagesla", "topk": 0.1, "block_q": 64, "block_k": 128, "pv": "f16"}),
    ] {
        let mut manifest = sample();
        manifest["recipe"]["attention"] = attention.clone();
        if attention["topk"].is_null() {
            manifest["videos"][0].as_object_mut().unwrap().shift_remove("keep_blocks");
        }
        let manifest = parse_manifest(&serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&manifest.recipe.attention).unwrap(), attention);
    }
}

#[test]
fn other_schemas_are_named_before_anything_else_is_read() {
    let newer = br#"{"schema": 3, "created_by": {"name": "turbo-compile", "version": "9.1"}, "new": [[1]]}"#;
    assert_eq!(
        parse_manifest(newer).unwrap_err().to_string(),
        "made by turbo-compile 9.1 with manifest schema 3, this build reads schema 2: update turbo-run"
    );
    let older = br#"{"schema": 0}"#;
    assert_eq!(
        parse_manifest(older).unwrap_err().to_string(),
        "made by an unknown program with manifest schema 0, this build reads schema 2: \
         compile the checkpoint again with this version's turbo-compile"
    );
    let rude = br#"{"schema": 3, "created_by": {"name": "\u001b[31m"}}"#;
    assert!(parse_manifest(rude).unwrap_err().to_string().starts_with("made by \\u{1b}[31m with"));
    let huge = format!(r#"{{"schema": {}}}"#, u64::MAX);
    assert!(matches!(parse_manifest(huge.as_bytes()), Err(Error::NewerSchema { found: u64::MAX, .. })));
}

#[test]
fn broken_json_names_field_and_place() {
    let unknown = changed("/videos/0/colour", Some(json!("red")));
    let deep = "[".repeat(100_000);
    for (json, field, message) in [
        (&b""[..], "top level", "EOF"),
        (b"\0\0", "top level", "line 1 column 1"),
        (b"7", "top level", "invalid type"),
        (b"{}", "top level", "missing field `schema`"),
        (b"{\"schema\": \"1\"}", "schema", "invalid type: string \"1\", expected u64"),
        (b"{\"schema\": -1}", "schema", "invalid value"),
        (b"{\"schema\": 1, \"schema\": 1}", "top level", "duplicate field"),
        (b"{\"schema\": 1} x", "end", "trailing characters"),
        (b"\xff\xfe", "top level", "line 1"),
        (deep.as_bytes(), "[0]", "invalid type"),
        (
            &changed("/videos/0/latent_mean", Some(json!([1e39, 0.0]))),
            "videos[0].latent_mean[0]",
            "out of range",
        ),
        (&unknown, "videos[0].colour", "unknown field `colour`"),
        (
            &changed("/stages/0/inputs/0/dtype", Some(json!("f33"))),
            "stages[0].inputs[0].dtype",
            "unknown variant",
        ),
        (
            &changed("/stages/0/inputs/0/shape/1", Some(json!(-1))),
            "stages[0].inputs[0].shape[1]",
            "invalid value",
        ),
        (&changed("/sampling/steps", Some(json!(4.5))), "sampling.steps", "expected u32"),
        (&changed("/sampling/sigma_max", Some(json!(null))), "sampling.sigma_max", "expected f64"),
        (&changed("/model/dim", None), "model", "missing field `dim`"),
        (&changed("/backend/kind", Some(json!("cuda"))), "backend.kind", "unknown variant"),
        (
            &changed("/backend/gpu", Some(json!({"name": "GPU", "compute_capability": [9]}))),
            "backend.gpu.compute_capability",
            "invalid length 1",
        ),
        (&changed("/backend/gpu", Some(json!({"speed": 1}))), "backend.gpu.speed", "unknown field `speed`"),
        (
            &changed("/stages/0/activation_bytes", Some(json!(-1))),
            "stages[0].activation_bytes",
            "invalid value",
        ),
        (&changed("/recipe/attention/speed", Some(json!(1))), "recipe.attention", "unknown field `speed`"),
        (
            &changed("/recipe/attention", Some(json!({"kind": "dense", "topk": 0.1}))),
            "recipe.attention",
            "unknown field `topk`",
        ),
    ] {
        match parse_manifest(json) {
            Err(Error::ManifestSyntax { field: found, message: text }) => {
                assert_eq!(found, field, "{text}");
                assert!(text.contains(message), "{field}: {text}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let deep = format!("{{\"schema\": 1, \"created_by\": {}", "[".repeat(1 << 20));
    match parse_manifest(deep.as_bytes()) {
        Err(Error::ManifestSyntax { field, message }) => {
            assert!(field.starts_with("created_by[0]") && field.len() < 150, "{field}");
            assert!(message.starts_with("recursion limit exceeded"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_out_of_range_name_the_field() {
    let long = "x".repeat(257);
    let path = |path: &str| json!({"path": path, "bytes": 1, "sha256": "0".repeat(64)});
    let tensor = |shape: &[u64]| json!({"name": "x", "dtype": "f32", "shape": shape});
    let state = |name: &str, input: &str, output: &str, shape: &[u64]| json!({"name": name, "input": input, "output": output, "dtype": "f32", "shape": shape});
    for (pointer, value, field, expected) in [
        ("/created_by/name", json!(""), "created_by.name", "1 to 256 bytes"),
        ("/created_by/version", json!("a\u{7}"), "created_by.version", "control characters"),
        ("/backend/min_version", json!("1"), "backend.min_version", "MAJOR.MINOR"),
        ("/backend/min_version", json!("1.22.0"), "backend.min_version", "MAJOR.MINOR"),
        ("/backend/min_version", json!("1.x"), "backend.min_version", "MAJOR.MINOR"),
        ("/backend/min_version", json!("+1.2"), "backend.min_version", "MAJOR.MINOR"),
        ("/ops/1/name", json!("TurboInt8Linear"), "ops[1].name", "not in use"),
        ("/ops/1/version", json!(long), "ops[1].version", "1 to 256 bytes"),
        ("/model/dim", json!(0), "model.dim", "positive"),
        ("/model/heads", json!(3), "model.heads", "divisor of dim 256"),
        ("/model/in_channels", json!(1), "model.in_channels", "at least 2"),
        ("/model/parameters", json!(0), "model.parameters", "positive"),
        ("/videos/0/frames", json!(32), "videos[0].frames", "1 plus a multiple of 4"),
        ("/videos/0/frames", json!(0), "videos[0].frames", "positive"),
        ("/videos/0/width", json!(200), "videos[0].width", "multiple of 16"),
        ("/videos/0/height", json!(u32::MAX), "videos[0].height", "multiple of 16"),
        ("/videos/0/fps", json!(0), "videos[0].fps", "positive"),
        ("/videos/0/vae_stride", json!([4, 0, 8]), "videos[0].vae_stride", "positive strides"),
        ("/videos/0/vae_stride/1", json!(u32::MAX), "videos[0].height", "a multiple of 8589934590"),
        ("/videos/0/latent", json!([2, 9, 14, 27]), "videos[0].latent", "[2, 9, 14, 26]"),
        ("/videos/0/tokens", json!(820), "videos[0].tokens", "819"),
        ("/videos/0/latent_mean", json!([0.0]), "videos[0].latent_mean", "2 numbers"),
        ("/videos/0/latent_std", json!([0.0, 1.0]), "videos[0].latent_std", "positive"),
        ("/recipe/attention/topk", json!(0.0), "recipe.attention.topk", "above 0"),
        ("/recipe/attention/topk", json!(1.01), "recipe.attention.topk", "at most 1"),
        ("/videos/0/keep_blocks", json!(0), "videos[0].keep_blocks", "1 to 13"),
        ("/videos/0/keep_blocks", json!(14), "videos[0].keep_blocks", "1 to 13"),
        ("/recipe/attention/block_k", json!(0), "recipe.attention.block_k", "positive"),
        ("/sampling/steps", json!(5), "sampling.steps", "1 to 4"),
        ("/sampling/sigma_max", json!(-1.0), "sampling.sigma_max", "positive"),
        ("/sampling/boundary", json!(1.0), "sampling.boundary", "between 0 and 1"),
        ("/sampling/boundary", json!(null), "sampling.boundary", "because there are two experts"),
        ("/experts/low", json!(null), "sampling.boundary", "because there is one expert"),
        ("/experts/high/steps", json!(["dit"]), "experts.high.steps", "name of a stage"),
        ("/experts/high/steps", json!([]), "experts.high.steps", "at least one stage"),
        ("/experts/low/context", json!("dit"), "experts.low.context", "name of a stage"),
        ("/tokenizer/entry", json!("t.json"), "tokenizer.entry", "path of an entry"),
        ("/stages/1/graph", json!("graphs/none.onnx"), "stages[1].graph", "path of an entry"),
        ("/stages/1/weights/0", json!("weights/none"), "stages[1].weights[0]", "path of an entry"),
        ("/stages/1/name", json!("text_encoder"), "stages[1].name", "no other stage of the same video"),
        ("/stages/1/outputs", json!([]), "stages[1].outputs", "at least one"),
        ("/stages/1/inputs/1/name", json!("x"), "stages[1].inputs[1].name", "not in use"),
        ("/stages/1/inputs/0", tensor(&[1, 0]), "stages[1].inputs[0].shape", "positive dimensions"),
        ("/stages/1/inputs/0", tensor(&[1; 9]), "stages[1].inputs[0].shape", "at most 8"),
        ("/stages/1/inputs/0", tensor(&[u64::MAX, 2]), "stages[1].inputs[0].shape", "at most 1 TiB"),
        ("/stages/1/inputs/0", tensor(&[1 << 39]), "stages[1].inputs[0].shape", "at most 1 TiB"),
        ("/stages/1/peak_memory_bytes", json!(0), "stages[1].peak_memory_bytes", "positive"),
        ("/stages/3/state/0", state("conv1", "latent", "o", &[1]), "stages[3].state[0].input", "not in use"),
        ("/stages/3/state/0", state("conv1", "i", "frames", &[1]), "stages[3].state[0].output", "not in use"),
        ("/stages/4/state/0", state("conv1", "i", "o", &[1]), "stages[4].state[0]", "[1, 2, 2, 14, 26]"),
        ("/stages/4/state/0", state("conv1", "i", "o", &[0]), "stages[4].state[0].shape", "positive"),
        ("/entries/0", path("../x"), "entries[0].path", "lead outside"),
        ("/entries/0", path("/x"), "entries[0].path", "absolute"),
        ("/entries/0", path("TOKENIZER.json"), "entries[3].path", "not in use"),
        ("/entries/0", path("manifest.json"), "entries[0].path", "not in use"),
        ("/entries/0/sha256", json!("0".repeat(63)), "entries[0].sha256", "64 lower-case"),
        ("/entries/0/sha256", json!("A".repeat(64)), "entries[0].sha256", "64 lower-case"),
        ("/sources/0/name", json!("/home/me/dit.pth"), "sources[0].name", "without folders"),
        ("/sources/0/sha256", json!(""), "sources[0].sha256", "64 lower-case"),
        ("/licence", json!(""), "licence", "bytes of text"),
        ("/licence", json!("a\u{1b}[2J"), "licence", "control characters"),
    ] {
        match parse_manifest(&changed(pointer, Some(value.clone()))) {
            Err(Error::Manifest { field: found, expected: text, .. }) => {
                assert_eq!(found, field, "{pointer} = {value}: {text}");
                assert!(text.contains(expected), "{pointer} = {value}: {text}");
            }
            other => panic!("{pointer} = {value}: {other:?}"),
        }
    }
    let video = changed("/videos/0/frames", Some(json!(1)));
    let text = parse_manifest(&video).unwrap_err().to_string();
    assert_eq!(text, "manifest.json, videos[0].latent: expected [2, 1, 14, 26], found [2, 9, 14, 26]");
}

/// The sample with a second video of one frame, for which it has transformers and a decoder of its own.
fn two_videos() -> Value {
    let mut manifest = sample();
    let mut short = manifest["videos"][0].clone();
    short["frames"] = json!(1);
    short["latent"][1] = json!(1);
    short["tokens"] = json!(91);
    short["keep_blocks"] = json!(1);
    manifest["videos"].as_array_mut().unwrap().push(short);
    let stages = manifest["stages"].as_array_mut().unwrap();
    for mut stage in stages.split_off(1) {
        for video in [0, 1] {
            stage["video"] = json!(video);
            stages.push(stage.clone());
        }
    }
    manifest
}

fn check(manifest: &Value) -> Result<Manifest> {
    parse_manifest(&serde_json::to_vec(manifest).unwrap())
}

#[test]
fn stages_are_looked_up_for_a_video() {
    let given = two_videos();
    let manifest = check(&given).unwrap();
    let again = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), given, "no field is added or lost");
    for video in [0, 1] {
        let of = |name| manifest.stage(name, video).unwrap().video;
        assert_eq!(of("text_encoder"), None);
        assert_eq!(of("dit_low"), Some(video as u32));
    }
    assert_eq!(manifest.stage("dit_low", 2), None);
    let find = |size, frames| manifest.find_video(size, frames).map(|(index, video)| (index, video.frames));
    assert_eq!(find(None, None), Some((0, 33)));
    assert_eq!(find(Some((208, 112)), None), Some((0, 33)));
    assert_eq!(find(None, Some(1)), Some((1, 1)));
    assert_eq!(find(Some((112, 208)), Some(1)), None);
    assert_eq!(find(None, Some(5)), None);
}

#[test]
fn videos_and_their_stages_are_held_against_one_another() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str, &str); 12] = [
        (|m| m["videos"] = json!([]), "videos", "at least one"),
        (|m| m["videos"][1] = m["videos"][0].clone(), "videos[1]", "no video before it has"),
        (|m| m["videos"][1]["tokens"] = json!(819), "videos[1].tokens", "91"),
        (|m| m["videos"][1]["keep_blocks"] = json!(3), "videos[1].keep_blocks", "1 to 2"),
        (|m| m["videos"][1]["keep_blocks"] = json!(null), "videos[1].keep_blocks", "1 to 2"),
        (|m| m["recipe"]["attention"] = json!({"kind": "dense"}), "videos[0].keep_blocks", "not sparse"),
        (|m| m["stages"][2]["video"] = json!(2), "stages[2].video", "one of 2 videos"),
        (|m| m["stages"][2]["video"] = json!(0), "stages[2].name", "no other stage of the same video"),
        (|m| m["stages"][2]["video"] = json!(null), "stages[2].name", "no other stage of the same video"),
        (|m| m["stages"][1]["video"] = json!(null), "stages[2].name", "no other stage of the same video"),
        (
            |m| m["stages"][1]["name"] = json!("other"),
            "experts.high.steps",
            "the name of a stage that serves videos[0]",
        ),
        (
            |m| m["stages"][4]["name"] = json!("other"),
            "experts.low.steps",
            "the name of a stage that serves videos[1]",
        ),
    ];
    for (change, field, expected) in cases {
        let mut manifest = two_videos();
        change(&mut manifest);
        match check(&manifest) {
            Err(Error::Manifest { field: found, expected: text, .. }) => {
                assert_eq!(found, field, "{text}");
                assert!(text.contains(expected), "{field}: {text}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn states_are_shared_by_the_stages_of_one_video() {
    // The decoders are stages 5 and 6, the first chunk's, and 7 and 8, each of video 0 and 1.
    let shaped = |stages: &[usize]| {
        let mut manifest = two_videos();
        for &stage in stages {
            manifest["stages"][stage]["state"][0]["shape"] = json!([7]);
        }
        check(&manifest).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(shaped(&[6, 8]), Ok(()));
    assert!(shaped(&[8]).unwrap_err().contains("stages[8].state[0]"));
    // One stage for both videos, before and after those for one.
    for moved in [5, 8] {
        let mut manifest = two_videos();
        manifest["stages"][moved]["video"] = json!(null);
        manifest["stages"][moved]["name"] = json!("both");
        assert!(check(&manifest).is_ok());
        manifest["stages"][6]["state"][0]["shape"] = json!([7]);
        let text = check(&manifest).unwrap_err().to_string();
        assert!(
            text.contains(if moved == 5 { "stages[6].state[0]" } else { "stages[8].state[0]" }),
            "{text}"
        );
    }
}

/// The backend of plans, with one field replaced.
fn tensorrt(field: &str, value: Value) -> Value {
    let gpu = json!({
        "name": "NVIDIA H200", "compute_capability": [9, 0], "tensorrt": "10.13.2", "cuda": "12.9"
    });
    let mut backend = json!({"kind": "tensorrt", "min_version": "10.13", "gpu": gpu});
    backend["gpu"][field] = value;
    backend
}

#[test]
fn plans_name_their_gpu_and_graphs_none() {
    let backend = tensorrt("name", json!("NVIDIA H200"));
    let mut plans = sample();
    plans["backend"] = backend.clone();
    plans["stages"][0]["activation_bytes"] = json!(7);
    let manifest = parse_manifest(&serde_json::to_vec(&plans).unwrap()).unwrap();
    let gpu = manifest.backend.gpu.as_ref().unwrap();
    assert_eq!((gpu.compute_capability, gpu.tensorrt.as_str()), ([9, 0], "10.13.2"));
    assert_eq!(manifest.stages[0].activation_bytes, Some(7));
    let again = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&again).unwrap(), plans, "no field is added or lost");

    let without = json!({"kind": "tensorrt", "min_version": "10.13"});
    let on_cpu = json!({"kind": "onnxruntime-cpu", "min_version": "1.22", "gpu": backend["gpu"]});
    let three = "3 numbers joined by dots";
    let two = "2 numbers joined by dots";
    let long = "x".repeat(257);
    for (value, field, expected) in [
        (without, "backend.gpu", "the GPU of the plans"),
        (on_cpu, "backend.gpu", "none, because no GPU is used"),
        (tensorrt("name", json!("")), "backend.gpu.name", "1 to 256 bytes"),
        (tensorrt("name", json!(long)), "backend.gpu.name", "1 to 256 bytes"),
        (tensorrt("name", json!("a\u{1b}[2J")), "backend.gpu.name", "control characters"),
        (tensorrt("tensorrt", json!("")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.13")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.13.2.6")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.13.x")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("+10.13.2")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.013.2")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.13.-2")), "backend.gpu.tensorrt", three),
        (tensorrt("tensorrt", json!("10.13.99999999999")), "backend.gpu.tensorrt", three),
        (tensorrt("cuda", json!("12")), "backend.gpu.cuda", two),
        (tensorrt("cuda", json!("12.9.1")), "backend.gpu.cuda", two),
        (tensorrt("cuda", json!("12.")), "backend.gpu.cuda", two),
        (tensorrt("cuda", json!("+12.9")), "backend.gpu.cuda", two),
        (tensorrt("cuda", json!(" 12.9")), "backend.gpu.cuda", two),
    ] {
        match parse_manifest(&changed("/backend", Some(value.clone()))) {
            Err(Error::Manifest { field: found, expected: text, .. }) => {
                assert_eq!(found, field, "{value}: {text}");
                assert!(text.contains(expected), "{value}: {text}");
            }
            other => panic!("{value}: {other:?}"),
        }
    }
}

#[test]
fn numbers_that_json_cannot_hold_are_refused_before_they_are_written() {
    let sample = parse_manifest(SAMPLE.as_bytes()).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut manifest = sample.clone();
        manifest.videos[0].latent_mean[1] = bad;
        let text = manifest.check().unwrap_err().to_string();
        assert!(text.contains("videos[0].latent_mean: expected finite numbers"), "{text}");
        let mut manifest = sample.clone();
        manifest.sampling.sigma_max = bad.into();
        assert!(manifest.check().unwrap_err().to_string().contains("sampling.sigma_max"));
    }
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let mut manifest = sample();
    manifest["videos"][0] = json!({
        "width": 4_294_967_280u32, "height": 4_294_967_280u32, "frames": 4_294_967_293u32, "fps": 1,
        "vae_stride": [4, 8, 8], "latent": [u32::MAX, 1_073_741_824u32, 536_870_910u32, 536_870_910u32],
        "tokens": 1, "latent_mean": [], "latent_std": []
    });
    manifest["model"]["out_channels"] = json!(u32::MAX);
    let text = parse_manifest(&serde_json::to_vec(&manifest).unwrap()).unwrap_err().to_string();
    assert!(text.contains("videos[0].latent.shape: expected a tensor of at most 1 TiB"), "{text}");
}

#[test]
fn backend_versions_compare_as_numbers() {
    let backend = Backend { kind: BackendKind::OnnxRuntimeCpu, min_version: "1.22".into(), gpu: None };
    for version in ["1.22", "1.22.1", "1.100.0", "1.23.0-dev"] {
        assert!(backend.accepts(version), "{version}");
    }
    for version in ["1.21.9", "1.3", "2.22", "0.99", "", "1", "x.y", "1.-3"] {
        assert!(!backend.accepts(version), "{version}");
    }
}

#[test]
fn the_json_schema_is_up_to_date_and_documents_every_field() {
    let schema = schemars::schema_for!(Manifest).to_value();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/manifest.schema.json");
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("TURBO_WRITE_SCHEMA").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == text,
        "manifest.schema.json is stale: TURBO_WRITE_SCHEMA=1 cargo test --release -p turbo-engine-file schema"
    );

    fn visit(value: &Value, at: &str, fields: &mut usize) {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            assert_eq!(value.get("additionalProperties"), Some(&json!(false)), "{at} is open");
            for (name, property) in
                properties.iter().filter(|(name, _)| *name != "kind" || at.ends_with("Backend"))
            {
                assert!(property.get("description").is_some(), "{at}.{name} has no description");
                *fields += 1;
            }
        }
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, value)| visit(value, &format!("{at}/{key}"), fields))
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, value)| visit(value, &format!("{at}/{i}"), fields))
            }
            _ => {}
        }
    }
    let mut fields = 0;
    visit(&schema, "", &mut fields);
    assert!(fields > 70, "the walk saw only {fields} fields");
}
