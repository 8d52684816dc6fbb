//! The DiT against the reference: three namings, text- and image-to-video, sparse-linear attention, W8A8.

use anyhow::{Context, Result};
use turbo_models::dit::{Attention, Linear, Recipe, Tiling};

use super::backend::Backend;
use super::compiled::Compiled;
use super::forward::{Forward, dense};
use crate::family::rel;
use crate::vectors::{Family, Vectors, find};

/// Tolerances of f32 and bf16 code.
const F32: f64 = 2e-5;
const BF16: f64 = 1.5e-2;

pub(super) fn t2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("dit_t2v.safetensors")?;
    let dit = Compiled::find("dit_t2v_ckpt.safetensors")?;
    let forward = Forward::new(backend, &dit, dense())?;
    let bound = backend.bound(F32, BF16);
    family.attempt("A", |family| {
        let (x, t) = (v.f32("A.x")?, v.values("A.timestep")?);
        let given = forward.given(&v.f32("A.context")?, &t, &[])?;
        let out = forward.denoiser(&x, &[])?.run(&x, None, &given, 0)?;
        family.rel("A.velocity", &out.get("velocity")?, &v.values("A.velocity")?, bound);
        // A graph whose inner values are outputs is another one to a compiler of graphs.
        family.attempt("A, inner values", |family| {
            let pairs = [
                ("patch_embedding", "A.patch_embed"),
                ("blocks.0.self_attn.q_rope", "A.block0.q_rope"),
                ("blocks.0.self_attn.k_rope", "A.block0.k_rope"),
                ("blocks.0.self_attn.v", "A.block0.v"),
                ("blocks.0.self_attn.attn", "A.block0.attn"),
                ("blocks.0", "A.block0.out"),
                ("blocks.1", "A.block1.out"),
            ];
            let out = forward.denoiser(&x, &pairs.map(|(tap, _)| tap))?.run(&x, None, &given, 0)?;
            for (tap, name) in pairs {
                family.rel(name, &out.get(tap)?, &v.values(name)?, bound);
            }
            Ok(())
        });
        let taps = ["text_embedding", "time_embedding", "time_projection"];
        let out = forward.given(&v.f32("A.context")?, &t, &taps)?;
        // In f32 on every backend.
        for (tap, name) in [(taps[1], "A.e"), (taps[2], "A.e0")] {
            family.rel(name, &out.get(tap)?, &v.values(name)?, F32);
        }
        let mut rows = out.get(taps[0])?;
        let head = v.values("A.context_emb_head")?;
        rows.truncate(head.len());
        family.rel("A.context_emb", &rows, &head, bound);
        Ok(())
    });
    family.attempt("B", |family| {
        let x = v.f32("B.x")?;
        let times = v.values("B.timesteps")?;
        let given = forward.given(&v.f32("B.context")?, &times, &[])?;
        let mut denoiser = forward.denoiser(&x, &["head.head"])?;
        for i in 0..times.len() {
            let out = denoiser.run(&x, None, &given, i)?;
            let name = format!("B.velocity_t{i}");
            family.rel(&name, &out.get("velocity")?, &v.values(&name)?, bound);
            let head = format!("B.head_out_t{i}");
            if v.has(&head) {
                family.rel("B.head_out", &out.get("head.head")?, &v.values(&head)?, bound);
            }
        }
        Ok(())
    });
    family.attempt("C", |family| {
        let x = v.f32("C.x")?;
        let (text, t) = (v.f32("C.context")?, v.values("C.timestep")?);
        let tap = "time_embedding";
        family.rel("C.e", &forward.given(&text, &t, &[tap])?.get(tap)?, &v.values("C.e")?, F32);
        let given = forward.given(&text, &t, &[])?;
        let out = forward.denoiser(&x, &[])?.run(&x, None, &given, 0)?;
        family.rel("C.velocity", &out.get("velocity")?, &v.values("C.velocity")?, bound);
        Ok(())
    });
    Ok(())
}

pub(super) fn names(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("dit_names.safetensors")?;
    let bound = backend.bound(F32, BF16);
    for naming in ["reference", "official", "diffusers"] {
        family.attempt(naming, |family| {
            let dit = Compiled::find(&format!("dit_names_ckpt_{naming}.safetensors"))?;
            let forward = Forward::new(backend, &dit, dense())?;
            let x = v.f32("x")?;
            let given = forward.given(&v.f32("context")?, &v.values("timestep")?, &[])?;
            let mut denoiser = forward.denoiser(&x, &["blocks.0", "patch_embedding"])?;
            let out = denoiser.run(&x, None, &given, 0)?;
            let pairs = [
                ("patch_embedding", "patch_embed", "patch_embed"),
                ("blocks.0", "block0.out", "block0"),
                ("velocity", "velocity", "velocity"),
            ];
            for (output, name, case) in pairs {
                family.rel(&format!("{naming} {case}"), &out.get(output)?, &v.values(name)?, bound);
            }
            Ok(())
        });
    }
    Ok(())
}

pub(super) fn i2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("dit_i2v.safetensors")?;
    for expert in ["high", "low"] {
        family.attempt(expert, |family| {
            let dit = Compiled::find(&format!("dit_i2v_{expert}_ckpt.safetensors"))?;
            let forward = Forward::new(backend, &dit, dense())?;
            let (x, t) = (v.f32("x")?, v.values(&format!("{expert}.timestep"))?);
            let given = forward.given(&v.f32("context")?, &t, &[])?;
            let taps = ["blocks.0.self_attn.q_rope", "blocks.0"];
            let out = forward.denoiser(&x, &taps)?.run(&x, Some(&v.f32("y")?), &given, 0)?;
            for (output, name) in
                [(taps[0], "block0.q_rope"), (taps[1], "block0.out"), ("velocity", "velocity")]
            {
                let name = format!("{expert}.{name}");
                family.rel(&name, &out.get(output)?, &v.values(&name)?, backend.bound(F32, BF16));
            }
            Ok(())
        });
    }
    Ok(())
}

pub(super) fn sla(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let common = Vectors::find("dit_sla_common.safetensors")?;
    // The overlay beside the checkpoint, as one folder of two shards.
    let folder = tempfile::tempdir()?;
    for (part, name) in [(1, "dit_t2v_ckpt.safetensors"), (2, "dit_sla_proj.safetensors")] {
        std::fs::copy(find(name)?, folder.path().join(format!("dit-0000{part}-of-00002.safetensors")))?;
    }
    let dit = Compiled::open(folder.path(), Linear::Bf16)?;
    let (x, t) = (common.f32("x")?, common.values("timestep")?);
    // What comes before the steps knows no attention recipe.
    let given = Forward::new(backend, &dit, dense())?.given(&common.f32("context")?, &t, &[])?;
    for (block_q, block_k) in [(128, 64), (64, 128)] {
        family.attempt(&format!("{block_q}x{block_k}"), |family| {
            let v = Vectors::find(&format!("dit_sla_{block_q}x{block_k}.safetensors"))?;
            let names = v.names();
            for percent in names.iter().filter_map(|n| n.strip_prefix("topk")?.strip_suffix(".velocity")) {
                let recipe = Recipe {
                    attention: Attention::Sla,
                    topk: percent.parse::<f64>()? / 100.0,
                    tiling: Tiling { block_q, block_k },
                    ..dense()
                };
                let case = format!("{block_q}x{block_k} topk{percent} velocity");
                family.attempt(&case, |family| {
                    let forward = Forward::new(backend, &dit, recipe)?;
                    let out = forward.denoiser(&x, &[])?.run(&x, None, &given, 0)?;
                    let expected = v.values(&format!("topk{percent}.velocity"))?;
                    family.rel(&case, &out.get("velocity")?, &expected, backend.bound(F32, BF16));
                    Ok(())
                });
            }
            Ok(())
        });
    }
    Ok(())
}

pub(super) fn w8a8(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("dit_w8a8.safetensors")?;
    let dit = Compiled::open(&find("dit_w8a8_ckpt.safetensors")?, Linear::W8a8)?;
    let forward = Forward::new(backend, &dit, Recipe { linear: Linear::W8a8, ..dense() })?;
    let x = v.f32("x")?;
    let given = forward.given(&v.f32("context")?, &v.values("timestep")?, &[])?;
    let tap = "blocks.0.self_attn.q";
    let out = forward.denoiser(&x, &[tap])?.run(&x, None, &given, 0)?;
    let bound = backend.bound(1e-2, 3e-2);
    family.rel("block0.q_out", &out.get(tap)?, &v.values("block0.q_out")?, bound);
    let velocity = out.get("velocity")?;
    let own = family.rel("velocity", &velocity, &v.values("velocity")?, bound);
    // In bf16 the rounding of activations is as large as the effect of the quantised weights, 1.9e-2.
    if backend.is_exact() {
        let plain = v.values("velocity_unquantised")?;
        let other = family.rel("velocity_unquantised", &velocity, &plain, 1e-1);
        family.holds("closer to velocity than to velocity_unquantised", own < other);
    }
    Ok(())
}

/// The reference's own GPU kernels, whose modes are 5e-2 to 7e-2 apart.
pub(super) fn gpu(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("gpu/dit.safetensors")?;
    let topk = v.number("topk").or(v.number("sla_topk")).unwrap_or(0.25);
    for mode in ["original", "sla", "sagesla", "sagesla_w8a8"] {
        family.attempt(mode, |family| self::mode(backend, family, &v, mode, topk));
    }
    Ok(())
}

fn mode(backend: &dyn Backend, family: &mut Family, v: &Vectors, mode: &str, topk: f64) -> Result<()> {
    let (attention, block_q, block_k) = match mode {
        "original" => (Attention::Dense, 128, 64),
        "sla" => (Attention::Sla, 128, 64),
        _ => (Attention::SageSla, 64, 128),
    };
    let (linear, file) = match mode {
        "sagesla_w8a8" => (Linear::W8a8, "gpu/ckpt_quant.safetensors"),
        _ => (Linear::Bf16, "gpu/ckpt.safetensors"),
    };
    let dit = Compiled::open(&find(file)?, linear)?;
    let recipe = Recipe { attention, topk, tiling: Tiling { block_q, block_k }, linear, ..Recipe::default() };
    let forward = Forward::new(backend, &dit, recipe)?;
    let x = v.f32("x")?;
    let mut denoiser = forward.denoiser(&x, &["blocks.0", "blocks.1"])?;
    let names = v.names();
    let start = format!("{mode}.t");
    let steps: Vec<&str> =
        names.iter().filter_map(|n| n.strip_prefix(&start)?.strip_suffix(".velocity")).collect();
    let bf16 = |t: &&str| Ok(half::bf16::from_f32(t.parse().context("a time step")?).to_f32());
    let times: Vec<f32> = steps.iter().map(bf16).collect::<Result<_>>()?;
    let given = forward.given(&v.f32("context")?, &times, &[])?;
    for (step, t) in steps.into_iter().enumerate() {
        let out = denoiser.run(&x, None, &given, step)?;
        for block in [0, 1] {
            let name = format!("{mode}.t{t}.block{block}");
            family.rel(&name, &out.get(&format!("blocks.{block}"))?, &v.values(&name)?, 2e-2);
        }
        let velocity = out.get("velocity")?;
        let name = |mode: &str| format!("{mode}.t{t}.velocity");
        let own = family.rel(&name(mode), &velocity, &v.values(&name(mode))?, 4e-2);
        for other in ["original", "sla", "sagesla", "sagesla_w8a8"] {
            // SageSLA and its W8A8 form are 1.1e-2 apart, no more than bf16 kernels are from f32 ones.
            let near = mode.starts_with("sagesla") && other.starts_with("sagesla");
            if other == mode || near || !v.has(&name(other)) {
                continue;
            }
            let distance = rel(&velocity, &v.values(&name(other))?);
            println!("{mode} t {t}: own {own:.4}, {other} {distance:.4}");
            family.holds(&format!("{mode}.t{t} is closer to itself than to {other}"), own < distance);
        }
    }
    Ok(())
}
