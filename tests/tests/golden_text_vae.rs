//! The text encoder and the VAE against the reference.

use turbo_models::dit::Linear;
use turbo_models::vae::{self, LATENT_MEAN, LATENT_STD};
use turbo_models::{Params, umt5};
use turbo_pipeline::backend::{Runtime, Tensor};
use turbo_tests::vectors::{Compiled, Family, Outputs, Vectors, file, run, runtime};

const F32: turbo_graph::DType = turbo_graph::DType::F32;

#[test]
fn golden_umt5() {
    let Some(vectors) = file("umt5.safetensors") else { return };
    let Some(runtime) = runtime() else { return };
    let v = Vectors::open(&vectors);
    let (shape, ids) = v.i64("ids");
    let (_, mask) = v.i64("mask");
    let (batch, length) = (shape[0], shape[1]);
    let mut family = Family::new("umt5");
    for name in ["umt5_ckpt.safetensors", "umt5_ckpt_hf.safetensors"] {
        let Some(checkpoint) = file(name) else { continue };
        let encoder = Compiled::open(&checkpoint, Linear::Bf16);
        let config = umt5::Config::read(encoder.network, None).unwrap();
        let graph = umt5::text_encoder(&config, Params::new(&encoder.stored, F32), batch, length).unwrap();
        let pairs = [
            ("token_embedding", "token_embedding"),
            ("blocks.0.norm1", "block0.norm1"),
            ("blocks.0.attn", "block0.attn"),
            ("blocks.0.ffn", "block0.ffn"),
            ("blocks.0", "block0.out"),
            ("blocks.1", "block1.out"),
            ("norm", "encoder_out"),
        ];
        let mut taps: Vec<&str> = pairs.iter().map(|p| p.0).collect();
        taps.push("blocks.0.position_bias");
        let ids = Tensor::i64(shape.clone(), ids.clone());
        let weight = Tensor::f32(shape.clone(), mask.iter().map(|&m| m as f32).collect());
        let out = run(&mut encoder.load(&runtime, graph, &taps), &[("ids", &ids), ("mask", &weight)]);
        // Rows beyond a prompt hold garbage by design.
        let valid = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks(values.len() / mask.len()).zip(&mask);
            rows.filter(|(_, m)| **m != 0).flat_map(|(row, _)| row.to_vec()).collect()
        };
        for (tap, tensor) in pairs {
            family.rel(&format!("{name} {tensor}"), &valid(&out[tap]), &valid(v.f32(tensor).as_f32()), 1e-5);
        }
        let bias = v.f32("block0.position_bias");
        family.rel(&format!("{name} position_bias"), &out["blocks.0.position_bias"], bias.as_f32(), 1e-7);
        family.rel(&format!("{name} text_emb"), &out["text_emb"], v.f32("text_emb").as_f32(), 1e-5);
    }
}

/// Runs a streaming network over chunks, its state carried on as the runtime does.
fn stream(
    runtime: &Runtime,
    vae: &Compiled,
    build: impl Fn(bool) -> vae::Stage,
    input: &str,
    chunks: &[Tensor],
    taps: &dyn Fn(usize) -> Vec<String>,
) -> Vec<Outputs> {
    let mut state: std::collections::BTreeMap<String, Tensor> = Default::default();
    let each = chunks.iter().enumerate().map(|(i, chunk)| {
        let stage = build(i == 0);
        for s in &stage.state {
            let zeros = Tensor::f32(s.shape.clone(), vec![0.0; s.shape.iter().product()]);
            state.entry(format!("state.{}", s.name)).or_insert(zeros);
        }
        let taps = taps(i);
        let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
        let mut session = vae.load(runtime, stage.graph, &taps);
        let names: Vec<String> = session.input_names().map(str::to_string).collect();
        let mut inputs: Vec<(&str, &Tensor)> = vec![(input, chunk)];
        inputs.extend(names.iter().filter(|n| *n != input).map(|n| (n.as_str(), &state[n])));
        let outputs = session.run(&inputs).unwrap();
        let mut kept = Outputs::new();
        for (name, tensor) in outputs {
            match name.strip_prefix("next.") {
                Some(name) => drop(state.insert(format!("state.{name}"), tensor)),
                None => {
                    drop(kept.insert(name.trim_start_matches("tap.").to_string(), tensor.as_f32().to_vec()))
                }
            }
        }
        kept
    });
    each.collect()
}

/// Frames `range` of `[1, c, t, h, w]`.
fn frames(x: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let [_, c, t, h, w] = x.shape[..] else { panic!("five axes") };
    let plane = h * w;
    let part =
        (0..c).flat_map(|i| x.as_f32()[(i * t + range.start) * plane..(i * t + range.end) * plane].to_vec());
    Tensor::f32(vec![1, c, range.len(), h, w], part.collect())
}

/// Joins chunks `[1, c, t, h, w]` along time.
fn join(chunks: &[Vec<f32>], c: usize, plane: usize) -> Vec<f32> {
    (0..c)
        .flat_map(|i| {
            chunks
                .iter()
                .flat_map(move |chunk| chunk[i * chunk.len() / c..(i + 1) * chunk.len() / c].to_vec())
        })
        .collect::<Vec<f32>>()
        .chunks(plane)
        .flatten()
        .copied()
        .collect()
}

#[test]
fn golden_vae() {
    let (Some(vectors), Some(checkpoint)) = (file("vae.safetensors"), file("vae_ckpt.safetensors")) else {
        return;
    };
    let Some(runtime) = runtime() else { return };
    let v = Vectors::open(&vectors);
    let vae_net = Compiled::open(&checkpoint, Linear::Bf16);
    let config = vae::Config::read(vae_net.network).unwrap();
    let params = Params::new(&vae_net.stored, F32);
    let mut family = Family::new("vae");
    family.rel("mean", &LATENT_MEAN, v.f32("mean").as_f32(), 1e-7);
    family.rel("std", &LATENT_STD, v.f32("std").as_f32(), 1e-7);
    let stats = (&LATENT_MEAN[..], &LATENT_STD[..]);
    // `middle1_attn` is the module `middle.1`, `upsamples11` is `upsamples.11`.
    let module = |name: &str| {
        let name = name.trim_end_matches("_attn");
        let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
        match &name[..digits] {
            "conv" => name.to_string(),
            stem => format!("{stem}.{}", &name[digits..]),
        }
    };
    for i in 0.. {
        let Some(latent) = v.get(&format!("dec{i}.latent")) else { break };
        let chunks: Vec<Tensor> = (0..latent.shape[2]).map(|t| frames(&latent, t..t + 1)).collect();
        let (h, w) = (latent.shape[3], latent.shape[4]);
        let inner = |chunk: usize| -> Vec<(String, String)> {
            let prefix = format!("dec{i}.chunk{chunk}.");
            let names = v.names();
            names
                .iter()
                .filter_map(|n| Some((format!("decoder.{}", module(n.strip_prefix(&prefix)?)), n.clone())))
                .collect()
        };
        let build = |first| vae::decoder(&config, params, stats, h, w, first).unwrap();
        let taps = |chunk: usize| inner(chunk).into_iter().map(|(tap, _)| tap).collect();
        let out = stream(&runtime, &vae_net, build, "latent", &chunks, &taps);
        for (chunk, out) in out.iter().enumerate() {
            for (tap, name) in inner(chunk) {
                family.rel(&name, &out[&tap], v.f32(&name).as_f32(), 1e-5);
            }
        }
        let video = v.f32(&format!("dec{i}.video"));
        let parts: Vec<Vec<f32>> = out.iter().map(|o| o["video"].clone()).collect();
        let plane = video.shape[3] * video.shape[4];
        family.rel(&format!("dec{i}.video"), &join(&parts, 3, plane), video.as_f32(), 1e-5);
    }
    for i in 0.. {
        let Some(video) = v.get(&format!("enc{i}.video")) else { break };
        let (t, h, w) = (video.shape[2], video.shape[3], video.shape[4]);
        let starts = [0].into_iter().chain((1..t).step_by(vae::FRAMES));
        let chunks: Vec<Tensor> =
            starts.map(|s| frames(&video, s..(if s == 0 { 1 } else { s + vae::FRAMES }))).collect();
        let inner = |chunk: usize| -> Vec<(String, String)> {
            let prefix = format!("enc{i}.chunk{chunk}.");
            let names = v.names();
            names
                .iter()
                .filter_map(|n| Some((format!("encoder.{}", module(n.strip_prefix(&prefix)?)), n.clone())))
                .collect()
        };
        let build = |first| vae::encoder(&config, params, stats, h, w, first).unwrap();
        let taps = |chunk: usize| {
            let mut taps: Vec<String> = inner(chunk).into_iter().map(|(tap, _)| tap).collect();
            taps.push("moments".to_string());
            taps
        };
        let out = stream(&runtime, &vae_net, build, "video", &chunks, &taps);
        for (chunk, out) in out.iter().enumerate() {
            for (tap, name) in inner(chunk) {
                family.rel(&name, &out[&tap], v.f32(&name).as_f32(), 1e-5);
            }
        }
        let plane = (h / 8) * (w / 8);
        for (output, channels) in [("latent", config.z_dim), ("moments", 2 * config.z_dim)] {
            let parts: Vec<Vec<f32>> = out.iter().map(|o| o[output].clone()).collect();
            let name = format!("enc{i}.{output}");
            family.rel(&name, &join(&parts, channels, plane), v.f32(&name).as_f32(), 1e-5);
        }
    }
}
