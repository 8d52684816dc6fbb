//! One model in the forms that checkpoints come in: the same stored weights from each, and what is said of forms
//! that are wrong.

mod model;
#[path = "../../../compiler/checkpoint/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};
use tempfile::TempDir;
use turbo_checkpoint::Checkpoint;
use turbo_compile::network::Network;
use turbo_compile::stored::Stored;
use turbo_compile::{Choices, CompileError, NoProgress, compile};
use turbo_engine_file::EngineFile;
use turbo_models::dit::Linear;
use turbo_tests::demo;
use turbo_tests::vectors::file;

use model::Model;

/// A tensor of a file: element type, extents, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

const PROJ_L: &str = "attn_op.local_attn.proj_l.";

fn parse(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let owned = |t: &TensorView| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    file.iter().map(|(name, tensor)| (name.to_string(), owned(&tensor))).collect()
}

fn read(path: &Path) -> Tensors {
    parse(&std::fs::read(path).unwrap())
}

fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) {
    let view = |(name, (dtype, shape, bytes)): (&'a String, &'a Tensor)| -> (&'a String, TensorView<'a>) {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    };
    serialize_to_file(tensors.into_iter().map(view), None, path).unwrap();
}

fn demo_dit() -> Tensors {
    read(&demo::folder().join("dit.safetensors"))
}

/// The same tensors under other names.
fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
}

/// The file of weights that turbo-compile makes of a checkpoint, and the tensors that it leaves aside.
fn stored(path: &Path, linear: Linear) -> (Vec<u8>, Vec<String>) {
    let network = Network::identify(path, Checkpoint::open(path).unwrap()).unwrap();
    let stored = Stored::plan(&network, linear).unwrap();
    let mut bytes = Vec::new();
    stored.write(&stored.layout(), &mut bytes, &mut |_| Ok(())).unwrap();
    (bytes, network.ignored.clone())
}

/// As they are and quantised: byte for byte what the plain checkpoint gives, nothing left aside but `ignored`.
#[track_caller]
fn same(plain: &Path, variant: &Path, ignored: usize) {
    for linear in [Linear::Bf16, Linear::W8a8, Linear::Fp8] {
        let (expected, _) = stored(plain, linear);
        let (found, left) = stored(variant, linear);
        assert_eq!(left.len(), ignored, "{}: {left:?}", variant.display());
        // Not `assert_eq`, which would print megabytes.
        assert!(found == expected, "{} is stored otherwise as {linear:?}", variant.display());
    }
}

/// A wrapped name, as `model.diffusion_model.x` for `x`.
fn under(prefix: &str) -> impl Fn(&str) -> String {
    move |name| format!("{prefix}{name}")
}

/// Other values of the same types and extents.
fn changed(tensors: &Tensors) -> Tensors {
    let mut tensors = tensors.clone();
    // A bit of the mantissa, so that all stay finite.
    tensors.values_mut().for_each(|(_, _, bytes)| bytes.iter_mut().step_by(2).for_each(|b| *b ^= 1));
    tensors
}

#[test]
fn wrapped_names_are_unwrapped() {
    let plain = demo::folder().join("dit.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrapped.safetensors");
    let dit = demo_dit();
    for prefix in ["model.diffusion_model.", "diffusion_model.", "net.", "net_ema."] {
        write(&path, &renamed(&dit, under(prefix)));
        same(&plain, &path, 0);
    }
    write(
        &path,
        &renamed(&dit, |name| name.replacen("blocks.3.", "blocks.3._checkpoint_wrapped_module.", 1)),
    );
    same(&plain, &path, 0);
}

#[test]
fn averaged_weights_win_over_the_last_ones() {
    let plain = demo::folder().join("dit.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both.safetensors");
    let dit = demo_dit();
    let mut both = renamed(&dit, under("net_ema."));
    both.extend(renamed(&changed(&dit), under("net.")));
    write(&path, &both);
    same(&plain, &path, dit.len());

    // A gap in them is not filled from the others.
    both.remove("net_ema.blocks.2.ffn.0.bias").unwrap();
    let model = Model::new();
    write(&model.path("dit.safetensors"), &both);
    model.refused(&model.choices(), 3, &["dit.safetensors", "blocks.2.ffn.0.bias is missing"]);
}

#[test]
fn namings_of_one_network_are_stored_alike() {
    let Some(reference) = file("dit_names_ckpt_reference.safetensors") else { return };
    for naming in ["official", "diffusers"] {
        let Some(variant) = file(&format!("dit_names_ckpt_{naming}.safetensors")) else { continue };
        same(&reference, &variant, 0);
    }
}

/// Writes shards and returns which tensor is in which.
fn shards(folder: &Path, tensors: &Tensors, count: usize) -> serde_json::Map<String, serde_json::Value> {
    let mut map = serde_json::Map::new();
    for shard in 0..count {
        let name = format!("diffusion_pytorch_model-{:05}-of-{count:05}.safetensors", shard + 1);
        let part = tensors.iter().enumerate().filter(|(i, _)| i % count == shard).map(|(_, tensor)| tensor);
        write(&folder.join(&name), part.clone());
        map.extend(part.map(|(tensor, _)| (tensor.clone(), name.clone().into())));
    }
    map
}

#[test]
fn shards_make_one_network() {
    let plain = demo::folder().join("dit.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let map = shards(folder.path(), &demo_dit(), 3);
    same(&plain, folder.path(), 0);
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    let json = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(&index, json.to_string()).unwrap();
    same(&plain, &index, 0);
    same(&plain, folder.path(), 0);
}

#[test]
fn a_missing_shard_is_named() {
    for with_index in [true, false] {
        let model = Model::new();
        std::fs::remove_file(model.path("dit.safetensors")).unwrap();
        let map = shards(&model.model(), &demo_dit(), 2);
        if with_index {
            let json = serde_json::json!({ "weight_map": map });
            let index = model.path("diffusion_pytorch_model.safetensors.index.json");
            std::fs::write(index, json.to_string()).unwrap();
        }
        let gone = "diffusion_pytorch_model-00002-of-00002.safetensors";
        std::fs::remove_file(model.path(gone)).unwrap();
        let says = if with_index { [gone, "missing"] } else { ["one of 2 shards", "not with it"] };
        model.refused(&model.choices(), 3, &says);
    }
}

/// As `torch.save(state_dict, path)` writes it.
fn write_pth(path: &Path, tensors: &Tensors, wrapper: Option<&str>) {
    let keys: Vec<String> = (0..tensors.len()).map(|i| i.to_string()).collect();
    let pickle = support::Pickle::dict(|p| {
        if let Some(wrapper) = wrapper {
            p.text("epoch").int(3).text(wrapper).op(b"}(");
        }
        for ((name, (dtype, shape, _)), key) in tensors.iter().zip(&keys) {
            let class = match dtype {
                Dtype::F32 => "torch.FloatStorage",
                Dtype::BF16 => "torch.BFloat16Storage",
                Dtype::I8 => "torch.CharStorage",
                other => panic!("no storage for {other:?}"),
            };
            // The writer takes names that live as long as the program.
            let key: &'static str = Box::leak(key.clone().into_boxed_str());
            p.text(name).tensor(&support::Tensor::whole(class, key, shape));
        }
        if wrapper.is_some() {
            p.op(b"u");
        }
    });
    let storages: Vec<(&str, &[u8])> =
        keys.iter().zip(tensors.values()).map(|(key, (_, _, bytes))| (key.as_str(), &bytes[..])).collect();
    std::fs::write(path, support::torch_file(&pickle, &storages)).unwrap();
}

#[test]
fn pytorch_files_are_stored_alike() {
    let plain = demo::folder().join("dit.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dit.pth");
    for (prefix, wrapper) in [("", None), ("net.", Some("state_dict"))] {
        write_pth(&path, &renamed(&demo_dit(), under(prefix)), wrapper);
        // The epoch beside the wrapped tensors is what is left aside.
        same(&plain, &path, usize::from(wrapper.is_some()));
    }
}

#[test]
fn aliases_of_proj_l_are_stored_alike() {
    let plain = demo::folder().join("dit.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alias.safetensors");
    let dit = demo_dit();
    for alias in ["attn_impl.proj_l.", "local_attn.proj_l."] {
        write(&path, &renamed(&dit, |name| name.replacen(PROJ_L, alias, 1)));
        same(&plain, &path, 0);
    }
    // Both names in one file are two tensors for one place.
    let model = Model::new();
    model.edit("dit.safetensors", |tensors| {
        let own = format!("blocks.0.self_attn.{PROJ_L}weight");
        let copy = tensors[&own].clone();
        tensors.insert("blocks.0.self_attn.local_attn.proj_l.weight".to_string(), copy);
    });
    let says = ["blocks.0.self_attn.local_attn.proj_l.weight", "are both"];
    let dit = Choices { model: Some(model.path("dit.safetensors")), ..model.networks() };
    model.refused(&dit, 3, &says);
}

#[test]
fn quantised_weights_are_stored_bit_for_bit() {
    let Some(path) = file("dit_w8a8_ckpt.safetensors") else { return };
    let given = read(&path);
    for linear in [Linear::W8a8, Linear::Fp8, Linear::Bf16] {
        let found = parse(&stored(&path, linear).0);
        assert_eq!(found.keys().collect::<Vec<_>>(), given.keys().collect::<Vec<_>>());
        for (name, tensor) in &given {
            assert!(found[name] == *tensor, "{name} differs");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let wrapped = folder.path().join("wrapped.safetensors");
    write(&wrapped, &renamed(&given, under("net.")));
    same(&path, &wrapped, 0);
    let pth = folder.path().join("dit-quant.pth");
    write_pth(&pth, &given, None);
    same(&path, &pth, 0);
}

#[test]
fn stored_weights_are_a_checkpoint_of_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stored.safetensors");
    let (bytes, _) = stored(&demo::folder().join("dit.safetensors"), Linear::W8a8);
    std::fs::write(&path, &bytes).unwrap();
    assert!(stored(&path, Linear::W8a8).0 == bytes);
}

/// FP8 weights are of our own making, and named so that they are not taken for INT8.
#[test]
fn stored_fp8_weights_are_no_checkpoint() {
    let model = Model::new();
    let (bytes, _) = stored(&demo::folder().join("dit.safetensors"), Linear::Fp8);
    assert!(parse(&bytes).iter().all(|(name, (dtype, _, bytes))| {
        let is_number = |byte: &u8| byte & 0x7f != 0x7f;
        !name.ends_with("fp8_weight") || *dtype == Dtype::I8 && bytes.iter().all(is_number)
    }));
    std::fs::write(model.path("dit.safetensors"), bytes).unwrap();
    model.refused(&model.choices(), 3, &["dit.safetensors", "blocks.0.ffn.0.weight"]);
}

#[test]
fn a_quantised_checkpoint_compiles_to_its_own_bits() {
    let model = Model::new();
    let Some(choices) = quantised(&model, |_| ()) else { return };
    for (linear, word) in [(Linear::Bf16, "--linear bf16"), (Linear::Fp8, "--linear fp8")] {
        let refused = Choices { linear: Some(linear), ..choices.clone() };
        model.refused(&refused, 2, &["quantised already", word, "--linear w8a8"]);
    }
    compile(&choices, &mut NoProgress).unwrap();
    let engine = EngineFile::open(choices.output.as_deref().unwrap()).unwrap();
    let found = parse(engine.bytes("weights/dit.safetensors").unwrap());
    assert!(found == read(&model.path("quant.safetensors")));
}

#[test]
fn a_missing_tensor_is_named() {
    for name in [
        "head.modulation",
        "patch_embedding.weight",
        "head.head.bias",
        "text_embedding.0.weight",
        "time_projection.1.bias",
        "blocks.0.ffn.0.weight",
        "blocks.7.modulation",
        "blocks.4.modulation",
        "blocks.3.self_attn.norm_q.weight",
        "blocks.5.self_attn.attn_op.local_attn.proj_l.weight",
        "blocks.0.self_attn.attn_op.local_attn.proj_l.bias",
    ] {
        let model = Model::new();
        model.edit("dit.safetensors", |tensors| drop(tensors.remove(name).unwrap()));
        let says: &[&str] = match name {
            // Without the tensors that every transformer has it is no transformer.
            "head.modulation" | "patch_embedding.weight" => {
                model.refused(
                    &model.choices(),
                    2,
                    &["no diffusion transformer was found", "dit.safetensors"],
                );
                continue;
            }
            // The blocks are counted by it.
            "blocks.7.modulation" | "blocks.4.modulation" => &["dit.safetensors", "num_layers"],
            _ => &["dit.safetensors", name, "missing"],
        };
        model.refused(&model.choices(), 3, says);
    }
    // Without config.json to count the blocks, what is left of the last one has no place.
    let model = Model::new();
    std::fs::remove_file(model.path("config.json")).unwrap();
    model.edit("dit.safetensors", |tensors| drop(tensors.remove("blocks.7.modulation").unwrap()));
    model.refused(&model.choices(), 3, &["dit.safetensors", "tensor blocks.7.", "has no place"]);
    for (file, name) in
        [("text_encoder.safetensors", "norm.weight"), ("vae.safetensors", "decoder.conv1.bias")]
    {
        let model = Model::new();
        model.edit(file, |tensors| drop(tensors.remove(name).unwrap()));
        model.refused(&model.choices(), 3, &[file, name, "missing"]);
    }
}

/// The first block must not decide alone whether there are any: the video would be another, and nobody told.
#[test]
fn proj_l_missing_in_the_first_block_is_named() {
    let model = Model::new();
    let name = format!("blocks.0.self_attn.{PROJ_L}weight");
    model.edit("dit.safetensors", |tensors| drop(tensors.remove(&name).unwrap()));
    model.refused(&model.choices(), 3, &["dit.safetensors", &name, "missing"]);
}

#[test]
fn proj_l_of_a_block_that_is_not_there_is_named() {
    let model = Model::new();
    let name = format!("blocks.8.self_attn.{PROJ_L}weight");
    model.edit("dit.safetensors", |tensors| {
        tensors.insert(name.clone(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    model.refused(&model.choices(), 3, &["dit.safetensors", &name, "has no place"]);
}

#[test]
fn an_unknown_tensor_is_named() {
    for (file, name) in [
        ("dit.safetensors", "blocks.0.self_attn.gate.weight"),
        ("dit.safetensors", "blocks.8.ffn.0.bias"),
        ("dit.safetensors", "extra"),
        ("text_encoder.safetensors", "blocks.0.attn.k.bias"),
        ("vae.safetensors", "decoder.middle.9.bias"),
    ] {
        let model = Model::new();
        model.edit(file, |tensors| {
            tensors.insert(name.to_string(), (Dtype::BF16, vec![2], vec![0; 4]));
        });
        model.refused(&model.choices(), 3, &[file, name, "has no place", "hint: "]);
    }
}

#[test]
fn a_lora_is_not_a_model() {
    let model = Model::new();
    for names in [["lora_A.weight", "lora_B.weight"], ["lora_down.weight", "lora_up.weight"]] {
        let tensor = (Dtype::BF16, vec![4, 4], vec![0; 32]);
        let name = |leaf: &str| format!("diffusion_model.blocks.0.self_attn.q.{leaf}");
        let lora: Tensors = names.iter().map(|leaf| (name(leaf), tensor.clone())).collect();
        let path = model.path("lora.safetensors");
        write(&path, &lora);
        let choices = Choices { model: Some(path.clone()), ..model.networks() };
        model.refused(&choices, 3, &["lora.safetensors", "this is a LoRA", names[0], "hint: merge it"]);
        let expert = Choices { high_noise: Some(path.clone()), low_noise: Some(path), ..model.networks() };
        model.refused(&expert, 3, &["this is a LoRA"]);
    }
    // One in the place of the transformer of a folder.
    std::fs::rename(model.path("lora.safetensors"), model.path("dit.safetensors")).unwrap();
    model.refused(&model.choices(), 2, &["no diffusion transformer was found", "this is a LoRA"]);
}

#[test]
fn experts_that_do_not_belong_together_are_refused() {
    let model = Model::new().with_experts();
    let (high, low) = (model.path("high.safetensors"), model.path("low.safetensors"));
    let experts = |high: &Path, low: &Path| Choices {
        high_noise: Some(high.to_path_buf()),
        low_noise: Some(low.to_path_buf()),
        ..model.networks()
    };
    // One alone, and the two in each other's place.
    let alone = Choices { model: Some(high.clone()), ..model.networks() };
    model.refused(&alone, 3, &["one expert of an image-to-video model", "--high-noise FILE"]);
    model.refused(&experts(&low, &high), 3, &["speaks of the low-noise expert", "swapped"]);
    let half = Choices { high_noise: Some(high.clone()), ..model.networks() };
    model.refused(&half, 2, &["only one of two experts"]);

    // Two of high noise: in the folder, by flag, and under names that do not say so.
    let second = model.path("b_high.safetensors");
    std::fs::rename(&low, &second).unwrap();
    model.refused(&model.choices(), 2, &["both speak of the high-noise expert", "--low-noise FILE"]);
    model.refused(&experts(&high, &second), 3, &["b_high.safetensors", "speaks of the high-noise expert"]);
    std::fs::copy(&high, &low).unwrap();
    model.refused(&experts(&high, &low), 3, &["holds the same weights as"]);
    std::fs::remove_file(&low).unwrap();
    std::fs::rename(&second, model.path("second.safetensors")).unwrap();
    model.refused(&model.choices(), 2, &["which of", "cannot be told from their paths"]);

    // One quantised and the other not.
    let quantised = model.path("low.safetensors");
    std::fs::write(&quantised, stored(&model.path("second.safetensors"), Linear::W8a8).0).unwrap();
    model.refused(&experts(&high, &quantised), 3, &["low.safetensors", "differs from", "only one quantised"]);
    std::fs::remove_file(&quantised).unwrap();

    // A text-to-video transformer in the place of each, and in the place of both.
    let plain = model.path("plain.safetensors");
    write(&plain, &demo_dit());
    let says = ["differs from", "in_dim: 16", "in_dim: 36"];
    model.refused(&experts(&high, &plain), 3, &says);
    model.refused(&experts(&plain, &model.path("second.safetensors")), 3, &says);
    let other = model.path("other.safetensors");
    write(&other, &changed(&demo_dit()));
    model.refused(&experts(&plain, &other), 3, &["is a text-to-video transformer, given as an expert"]);
}

#[test]
fn image_to_video_needs_the_encoder_of_the_vae() {
    let model = Model::new().with_experts();
    model.edit("vae.safetensors", |t| {
        t.retain(|name, _| !name.starts_with("encoder.") && !name.starts_with("conv1."));
    });
    model.refused(&model.choices(), 3, &["vae.safetensors", "has no encoder", "image-to-video"]);
    // Text-to-video does without.
    let size = "64x64".parse().unwrap();
    let small = |choices| Choices { size: vec![size], frames: vec![49], topk: Some(0.25), ..choices };
    let dit = Some(demo::folder().join("dit.safetensors"));
    compile(&small(Choices { model: dit, ..model.networks() }), &mut NoProgress).unwrap();

    // A part of it is not enough, and with all of it the same folder compiles.
    let model = Model::new().with_experts();
    let small = small(model.choices());
    compile(&small, &mut NoProgress).unwrap();
    std::fs::remove_dir_all(model.out()).unwrap();
    std::fs::create_dir(model.out()).unwrap();
    model.edit("vae.safetensors", |tensors| drop(tensors.remove("conv1.bias").unwrap()));
    model.refused(&small, 3, &["vae.safetensors", "conv1.bias", "missing"]);
}

#[test]
fn experts_and_the_encoder_are_made_for_each_video() {
    let model = Model::new().with_experts();
    let choices = Choices {
        size: vec!["64x64".parse().unwrap(), "96x64".parse().unwrap()],
        frames: vec![49, 5],
        topk: Some(1.0),
        ..model.choices()
    };
    compile(&choices, &mut NoProgress).unwrap();
    let engine = EngineFile::open(&model.out().join("engine.plan")).unwrap();
    let graph = |name, video| engine.manifest().stage(name, video).unwrap().graph.as_str();
    for (video, (size, frames)) in
        [("64x64", 49), ("64x64", 5), ("96x64", 49), ("96x64", 5)].iter().enumerate()
    {
        for name in ["dit_high", "dit_low"] {
            assert_eq!(graph(name, video), format!("{name}-{size}x{frames}.onnx"));
        }
        for name in ["vae_encoder_first", "vae_encoder", "vae_decoder_first", "vae_decoder"] {
            assert_eq!(graph(name, video), format!("{name}-{size}.onnx"));
        }
        for name in ["text_encoder", "dit_high_context", "dit_low_context"] {
            assert_eq!(graph(name, video), format!("{name}.onnx"));
        }
    }
}

/// The small quantised checkpoint, changed, with the networks that fit it.
fn quantised(model: &Model, change: impl FnOnce(&mut Tensors)) -> Option<Choices> {
    let (path, text) = (file("dit_w8a8_ckpt.safetensors")?, file("umt5_ckpt.safetensors")?);
    let mut tensors = read(&path);
    change(&mut tensors);
    std::fs::remove_file(model.path("config.json")).unwrap();
    write(&model.path("quant.safetensors"), &tensors);
    Some(Choices {
        model: Some(model.path("quant.safetensors")),
        text_encoder: Some(text),
        size: vec!["64x64".parse().unwrap()],
        frames: vec![1],
        ..model.networks()
    })
}

#[test]
fn quantised_linears_must_be_whole() {
    type Change = fn(&mut Tensors);
    let wrong: [(Change, &[&str]); 6] = [
        (|t| drop(t.remove("blocks.0.ffn.2.scale").unwrap()), &["blocks.0.ffn.2.scale", "missing"]),
        (
            |t| drop(t.remove("blocks.0.cross_attn.q.int8_weight").unwrap()),
            &["blocks.0.cross_attn.q.int8_weight", "missing"],
        ),
        (
            |t| {
                let name = "blocks.0.self_attn.k.weight".to_string();
                t.insert(name, (Dtype::BF16, vec![128, 128], vec![0; 1 << 15]));
            },
            &["blocks.0.self_attn.k.weight", "has no place"],
        ),
        (|t| t.get_mut("blocks.0.ffn.0.scale").unwrap().1 = vec![1, 2], &["blocks.0.ffn.0.scale", "[1, 2]"]),
        (
            |t| t.get_mut("blocks.0.ffn.2.int8_weight").unwrap().0 = Dtype::F8_E4M3,
            &["blocks.0.ffn.2.int8_weight", "element type"],
        ),
        // A scale that is no number, in a file that is otherwise stored as it is.
        (
            |t| {
                let scale = t.get_mut("blocks.0.ffn.0.scale").unwrap();
                scale.2[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
            },
            &["blocks.0.ffn.0.scale", "1 infinite of 2"],
        ),
    ];
    for (change, says) in wrong {
        let model = Model::new();
        let Some(choices) = quantised(&model, change) else { return };
        model.refused(&choices, 3, &[&["quant.safetensors"], says].concat());
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let fill = |name: &str, (dtype, _, bytes): &mut Tensor| match dtype {
        Dtype::BF16 => bytes.chunks_mut(2).for_each(|b| b.copy_from_slice(&0x7fc0u16.to_le_bytes())),
        Dtype::F32 => bytes.chunks_mut(4).for_each(|b| b.copy_from_slice(&f32::NAN.to_le_bytes())),
        other => panic!("{name} is {other:?}"),
    };
    for (file, name) in [
        ("dit.safetensors", "blocks.6.ffn.2.weight"),
        ("dit.safetensors", "blocks.1.modulation"),
        ("dit.safetensors", "blocks.2.self_attn.attn_op.local_attn.proj_l.weight"),
        ("text_encoder.safetensors", "token_embedding.weight"),
        ("vae.safetensors", "decoder.conv1.weight"),
    ] {
        let model = Model::new();
        model.edit(file, |tensors| fill(name, tensors.get_mut(name).unwrap()));
        model.refused(&model.choices(), 3, &[file, name, "NaN", "hint: the file is damaged"]);
    }
    // All of a file.
    let model = Model::new();
    model.edit("dit.safetensors", |tensors| tensors.iter_mut().for_each(|(name, t)| fill(name, t)));
    model.refused(&model.choices(), 3, &["dit.safetensors", "NaN"]);
}
