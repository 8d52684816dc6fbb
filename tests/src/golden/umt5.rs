//! The text encoder against the reference.

use anyhow::Result;
use turbo_models::umt5;
use turbo_pipeline::backend::Tensor;

use super::backend::Backend;
use super::compiled::Compiled;
use crate::vectors::{Family, Vectors};

pub(super) fn suite(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("umt5.safetensors")?;
    let (shape, ids) = v.i64("ids")?;
    let (_, mask) = v.i64("mask")?;
    let (batch, length) = (shape[0], shape[1]);
    let ids = Tensor::i64(shape.clone(), ids);
    let weight = Tensor::f32(shape, mask.iter().map(|&m| m as f32).collect());
    let inputs = [("ids", &ids), ("mask", &weight)];
    // Rows beyond a prompt hold garbage by design.
    let valid = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks((values.len() / mask.len()).max(1)).zip(&mask);
        rows.filter(|(_, m)| **m != 0).flat_map(|(row, _)| row.to_vec()).collect()
    };
    let bound = backend.bound(1e-5, 2.5e-2);
    for name in ["umt5_ckpt.safetensors", "umt5_ckpt_hf.safetensors"] {
        family.attempt(name, |family| {
            let encoder = Compiled::find(name)?;
            let config = umt5::Config::read(encoder.network, None)?;
            let load = |taps: &[&str]| {
                let params = backend.params(&encoder.stored);
                backend.load(Some(&encoder), umt5::text_encoder(&config, params, batch, length)?, taps)
            };
            let text = load(&[])?.run(&inputs)?.get("text_emb")?;
            family.rel(&format!("{name} text_emb"), &text, &v.values("text_emb")?, bound);
            let pairs = [
                ("token_embedding", "token_embedding"),
                ("blocks.0.norm1", "block0.norm1"),
                ("blocks.0.attn", "block0.attn"),
                ("blocks.0.ffn", "block0.ffn"),
                ("blocks.0", "block0.out"),
                ("blocks.1", "block1.out"),
                ("norm", "encoder_out"),
            ];
            family.attempt(&format!("{name}, inner values"), |family| {
                let out = load(&pairs.map(|(tap, _)| tap))?.run(&inputs)?;
                for (tap, tensor) in pairs {
                    let expected = valid(&v.values(tensor)?);
                    family.rel(&format!("{name} {tensor}"), &valid(&out.get(tap)?), &expected, bound);
                }
                Ok(())
            });
            // Stored weights, gathered: alone, because a compiler of graphs sees a constant in it.
            let bias = load(&["blocks.0.position_bias"])?.run(&inputs)?.get("blocks.0.position_bias")?;
            family.rel(&format!("{name} position_bias"), &bias, &v.values("block0.position_bias")?, 1e-7);
            Ok(())
        });
    }
    Ok(())
}
