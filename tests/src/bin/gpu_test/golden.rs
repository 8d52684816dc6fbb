//! The vectors from the reference's own GPU kernels, through real engines.

use std::path::Path;

use anyhow::Result;
use turbo_compile::stages::weight_forms;
use turbo_graph::{DType, Graph};
use turbo_models::Params;
use turbo_models::dit::{self, Attention, Config, LatentSize, Linear, Recipe, Tiling};
use turbo_ops::cases::rel_l2;
use turbo_tests::gpu::{ACTIVATION, Gpu, Values};
use turbo_tests::vectors::{Compiled, Vectors};

use crate::report::Report;
use crate::wide;

/// The reference's own GPU kernels: every mode through real engines.
pub fn run(gpu: &Gpu, report: &mut Report, folder: &Path) -> Result<()> {
    let v = Vectors::open(&folder.join("dit.safetensors"));
    let modes = ["original", "sla", "sagesla", "sagesla_w8a8"];
    for mode in modes {
        let (attention, block_q, block_k) = match mode {
            "original" => (Attention::Dense, 128, 64),
            "sla" => (Attention::Sla, 128, 64),
            _ => (Attention::SageSla, 64, 128),
        };
        let (linear, file) = match mode {
            "sagesla_w8a8" => (Linear::W8a8, "ckpt_quant.safetensors"),
            _ => (Linear::Bf16, "ckpt.safetensors"),
        };
        let topk = v.0.metadata().get("topk").or(v.0.metadata().get("sla_topk"));
        let topk = topk.and_then(|t| t.parse().ok()).unwrap_or(0.25);
        let tiling = Tiling { block_q, block_k };
        let recipe = Recipe { attention, topk, tiling, linear, ..Recipe::default() };
        let (x, context) = (v.f32("x"), v.f32("context"));
        let run = || -> Result<Vec<(String, Values)>> {
            let mut dit = Compiled::open(&folder.join(file), linear);
            let config = Config::read(dit.network, None)?;
            let params = |dit: &Compiled| -> Result<(Graph, Graph)> {
                let params = Params::converted(&dit.stored, ACTIVATION);
                let size = LatentSize { frames: x.shape[2], height: x.shape[3], width: x.shape[4] };
                let text = dit::context(&config, &recipe, params, 1)?;
                Ok((text, dit::denoiser(&config, &recipe, params, 1, size)?))
            };
            let (text, mut step) = params(&dit)?;
            dit.stored.convert(&weight_forms([&text, &step].into_iter()));
            let weights = dit.converted();
            for block in [0, 1] {
                if let Some(value) = step.find(&format!("blocks.{block}")) {
                    let wide = step.cast(value, DType::F32);
                    step.output(&format!("block{block}"), wide);
                }
            }
            let side = gpu.engine(&text, &weights)?.run(&[("text_emb", context.as_f32())])?;
            let mut engine = gpu.engine(&step, &weights)?;
            let mut found = Vec::new();
            for t in ["999.0", "700.0"] {
                if v.get(&format!("{mode}.t{t}.velocity")).is_none() {
                    continue;
                }
                let step = half::bf16::from_f32(t.parse()?).to_f32();
                let time = turbo_sampler::time_embedding(step, config.freq_dim);
                let mut inputs: Vec<(&str, &[f32])> = vec![("x", x.as_f32()), ("time", &time)];
                inputs.extend(side.iter().map(|(name, values)| (name.as_str(), values.as_slice())));
                found.push((t.to_string(), engine.run(&inputs)?));
            }
            Ok(found)
        };
        let found = match run() {
            Ok(found) => found,
            Err(error) => {
                report.case("golden dit", mode, 0.0, || Err(error));
                continue;
            }
        };
        for (t, values) in &found {
            for block in [0, 1] {
                let Some(expected) = v.get(&format!("{mode}.t{t}.block{block}")) else { continue };
                report.case("golden dit", &format!("{mode} t {t} block {block}"), 2e-2, || {
                    Ok(rel_l2(&wide(&values[&format!("block{block}")]), &wide(expected.as_f32())))
                });
            }
            let far = |other: &str| {
                let other = v.get(&format!("{other}.t{t}.velocity"))?;
                Some(rel_l2(&wide(&values["velocity"]), &wide(other.as_f32())))
            };
            let own = far(mode).unwrap_or(f64::NAN);
            report.case("golden dit", &format!("{mode} t {t} velocity"), 4e-2, || Ok(own));
            // SageSLA and its W8A8 form are 1.1e-2 apart, no more than bf16 kernels are from f32 ones.
            let near = |other: &str| mode.starts_with("sagesla") && other.starts_with("sagesla");
            for other in modes.iter().filter(|other| **other != mode && !near(other)) {
                if let Some(distance) = far(other) {
                    let case = format!("{mode} t {t}, share of the distance to {other}");
                    report.case("golden dit", &case, 1.0, || Ok(own / distance));
                }
            }
        }
    }
    Ok(())
}
