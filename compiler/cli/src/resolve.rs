//! Choices, config.json and the networks' own sizes made into one complete, checked plan.

use serde_json::Value as Json;
use turbo_models::dit::{self, Attention, LatentSize, Linear, MAX_GRID, PvType, Recipe, Tiling, keep_blocks};
use turbo_models::{umt5, vae};
use turbo_ops::common::sums::SUM_ROWS;
use turbo_sampler::MAX_STEPS;

use crate::CompileError;
use crate::choices::{Choices, Flavor, Sampler, Size, Target};
use crate::inputs::Inputs;

/// Pixels per latent along time, height and width.
pub const VAE_STRIDE: [usize; 3] = [4, 8, 8];

/// A compile with nothing left open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Transformer sizes, the same for both experts.
    pub dit: dit::Config,
    /// Text encoder sizes.
    pub text_encoder: umt5::Config,
    /// VAE sizes.
    pub vae: vae::Config,
    /// What executes the engine file.
    pub target: Target,
    /// Precision and attention.
    pub recipe: Recipe,
    /// Custom ops or standard operators.
    pub flavor: Flavor,
    /// Graphs that each transformer is split into.
    pub parts: usize,
    /// The videos that can be made, the default first: every size with every number of frames.
    pub videos: Vec<Video>,
    /// Frames per second.
    pub fps: u32,
    /// Default steps.
    pub steps: u32,
    /// Default sampler.
    pub sampler: Sampler,
    /// First noise level.
    pub sigma_max: f64,
    /// Where the low-noise expert takes over, with two experts.
    pub boundary: Option<f64>,
}

/// A size and number of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Video {
    /// Pixels.
    pub size: Size,
    /// Video frames.
    pub frames: usize,
    /// Latent extents.
    pub latent: LatentSize,
}

impl Plan {
    /// Completes the choices; the block sizes of attention are `tiling` where neither they nor the checkpoint say any.
    ///
    /// # Errors
    /// Networks that do not belong together, sizes that do not fit (with the nearest that do), choices that
    /// the weights do not allow.
    pub fn resolve(choices: &Choices, inputs: &Inputs, tiling: Tiling) -> Result<Plan, CompileError> {
        let json = inputs.config.as_ref();
        let dit = transformer(inputs)?;
        let text_path = &inputs.text_encoder.path;
        let text_encoder = umt5::Config::read(&inputs.text_encoder, None)
            .map_err(|e| CompileError::Network { path: text_path.clone(), cause: e.to_string() })?;
        let vae_path = &inputs.vae.path;
        let vae = vae::Config::read(&inputs.vae)
            .map_err(|e| CompileError::Network { path: vae_path.clone(), cause: e.to_string() })?;
        let hint = "give the files of one model";
        if text_encoder.dim != dit.text_dim {
            let what = format!(
                "gives text embeddings of {}, the transformer takes {}",
                text_encoder.dim, dit.text_dim
            );
            return Err(CompileError::input(text_path, what, hint));
        }
        if vae.z_dim != dit.out_dim {
            let what = format!("has {} latent channels, the transformer {}", vae.z_dim, dit.out_dim);
            return Err(CompileError::input(vae_path, what, hint));
        }
        if dit.is_i2v() && inputs.vae.tensor("encoder.conv1.weight").is_none() {
            let what = "has no encoder, which image-to-video needs";
            return Err(CompileError::input(vae_path, what, "give the whole VAE, encoder included"));
        }
        let videos = videos(choices, json, dit.is_i2v())?;
        let recipe = recipe(choices, json, &dit, &videos, tiling)?;
        let rcm = |key: &str| json.and_then(|j| j.get("rcm")?.get(key));
        let steps = choices.steps.or_else(|| whole(json, "rcm", "steps").and_then(|n| u32::try_from(n).ok()));
        let steps = steps.unwrap_or(4);
        if !(1..=MAX_STEPS as u32).contains(&steps) {
            let hint = format!("rCM models take 1 to {MAX_STEPS} steps");
            return Err(CompileError::usage(format!("{steps} steps"), hint));
        }
        let said = rcm("sampler").and_then(|v| serde_json::from_value(v.clone()).ok());
        let sigma_max = choices.sigma_max.or_else(|| rcm("sigma_max")?.as_f64());
        let sigma_max = sigma_max.unwrap_or(if dit.is_i2v() { 200.0 } else { 80.0 });
        if !(sigma_max.is_finite() && sigma_max > 0.0) {
            return Err(CompileError::usage(
                format!("sigma_max {sigma_max}"),
                "give a positive number, such as 80",
            ));
        }
        let boundary = choices.boundary.unwrap_or(0.9);
        if !(boundary > 0.0 && boundary < 1.0) {
            return Err(CompileError::usage(
                format!("boundary {boundary}"),
                "give a time between 0 and 1, such as 0.9",
            ));
        }
        let target = choices.target.unwrap_or(Target::Cpu);
        let flavor = choices.flavor.unwrap_or(Flavor::Custom);
        if target == Target::Trt && flavor == Flavor::Standard {
            let what = "TensorRT engines use the custom ops, --flavor standard writes them out";
            return Err(CompileError::usage(what, "leave --flavor out, or use --target cpu"));
        }
        let parts = parts(choices, target, &dit, recipe.linear)?;
        let fps = choices.fps.or_else(|| whole(json, "video", "fps").and_then(|n| u32::try_from(n).ok()));
        Ok(Plan {
            target,
            recipe,
            flavor,
            parts,
            videos,
            fps: fps.unwrap_or(16),
            steps,
            sampler: choices.sampler.or(said).unwrap_or(Sampler::Sde),
            sigma_max,
            boundary: (inputs.dits.len() == 2).then_some(boundary),
            dit,
            text_encoder,
            vae,
        })
    }

    /// The choices that repeat this compile, nothing left to defaults.
    pub fn choices(&self, given: &Choices) -> Choices {
        Choices {
            target: Some(self.target),
            attention: Some(self.recipe.attention),
            topk: Some(self.recipe.topk),
            tiling: Some(self.recipe.tiling),
            pv: Some(self.recipe.pv),
            linear: Some(self.recipe.linear),
            flavor: Some(self.flavor),
            parts: Some(self.parts),
            size: distinct(self.videos.iter().map(|video| video.size)),
            frames: distinct(self.videos.iter().map(|video| video.frames)),
            fps: Some(self.fps),
            steps: Some(self.steps),
            sampler: Some(self.sampler),
            sigma_max: Some(self.sigma_max),
            boundary: self.boundary,
            ..given.clone()
        }
    }
}

/// Most bytes of block weights in one plan: a build took 6.5 GB of the host's memory for 1.3 GB of weights and 9.2
/// GB for 4.0 GB.
const PLAN_WEIGHTS: u64 = 4 << 30;

/// Into how many plans a transformer is split unless the user says: as few as keep the weights of each few enough.
pub fn default_parts(dit: &dit::Config, linear: Linear) -> usize {
    let weights = dit.block_bytes(linear).saturating_mul(dit.layers as u64);
    usize::try_from(weights.div_ceil(PLAN_WEIGHTS)).unwrap_or(dit.layers).clamp(1, dit.layers.max(1))
}

/// Into how many graphs each transformer is split.
fn parts(
    choices: &Choices,
    target: Target,
    dit: &dit::Config,
    linear: Linear,
) -> Result<usize, CompileError> {
    let parts = choices.parts.unwrap_or(match target {
        Target::Cpu => 1,
        Target::Trt => default_parts(dit, linear),
    });
    if !(1..=dit.layers).contains(&parts) {
        let what = format!("{parts} parts of a transformer of {} blocks", dit.layers);
        return Err(CompileError::usage(what, format!("give 1 to {}", dit.layers)));
    }
    Ok(parts)
}

/// Reads the transformers' sizes and checks that two experts are alike.
fn transformer(inputs: &Inputs) -> Result<dit::Config, CompileError> {
    let mut configs = Vec::new();
    for network in &inputs.dits {
        let config = dit::Config::read(network, inputs.config.as_ref())
            .map_err(|e| CompileError::Network { path: network.path.clone(), cause: e.to_string() })?;
        configs.push((network, config));
    }
    let Some((first, config)) = configs.first().cloned() else {
        return Err(CompileError::usage("no diffusion transformer was found", "give one as MODEL"));
    };
    if let Some((second, other)) = configs.get(1).filter(|(_, other)| *other != config) {
        let what = format!("differs from {}: {other:?} against {config:?}", first.path.display());
        let hint = "two experts must have the same sizes: one may be of another model, or only one quantised";
        return Err(CompileError::input(&second.path, what, hint));
    }
    if configs.len() == 1 && config.is_i2v() {
        let hint = "Wan 2.2 image-to-video has two experts: give --high-noise FILE and --low-noise FILE";
        return Err(CompileError::input(&first.path, "is one expert of an image-to-video model", hint));
    }
    if configs.len() == 2 && !config.is_i2v() {
        let hint = "two experts are known of Wan 2.2 image-to-video only: give one text-to-video transformer";
        return Err(CompileError::input(
            &first.path,
            "is a text-to-video transformer, given as an expert",
            hint,
        ));
    }
    Ok(config)
}

/// Every size with every number of frames, sizes in the outer order.
fn videos(choices: &Choices, json: Option<&Json>, is_i2v: bool) -> Result<Vec<Video>, CompileError> {
    let said = |key: &str| whole(json, "video", key);
    let (mut sizes, mut counts) = (choices.size.clone(), choices.frames.clone());
    if sizes.is_empty() {
        let size = said("width").zip(said("height")).map(|(width, height)| Size { width, height });
        sizes.push(size.unwrap_or(match is_i2v {
            true => Size { width: 1280, height: 720 },
            false => Size { width: 832, height: 480 },
        }));
    }
    if counts.is_empty() {
        counts.push(said("frames").unwrap_or(81));
    }
    let mut videos = Vec::new();
    for &size in &sizes {
        for &frames in &counts {
            let video = Video { size, frames, latent: fit(size, frames)? };
            if videos.contains(&video) {
                let what = format!("{size} with {frames} frames is asked for twice");
                return Err(CompileError::usage(what, "give each --size and each --frames once"));
            }
            videos.push(video);
        }
    }
    Ok(videos)
}

/// The values without those that were there before.
pub(crate) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut list = Vec::new();
    for value in values {
        if !list.contains(&value) {
            list.push(value);
        }
    }
    list
}

/// Latent extents of a video, or the nearest size that the VAE and the patch grid allow.
fn fit(size: Size, frames: usize) -> Result<LatentSize, CompileError> {
    let step = [VAE_STRIDE[1] * dit::PATCH[1], VAE_STRIDE[2] * dit::PATCH[2]];
    let nearest = |n: usize, step: usize| ((n + step / 2) / step).clamp(1, MAX_GRID) * step;
    let fitting = Size { width: nearest(size.width, step[1]), height: nearest(size.height, step[0]) };
    if size != fitting {
        let what = format!("size {size} does not fit: width and height must be multiples of {}", step[0]);
        let most = MAX_GRID * step[0];
        let hint = format!("the nearest that fits is {fitting} (at most {most}x{most})");
        return Err(CompileError::usage(what, hint));
    }
    if frames % VAE_STRIDE[0] != 1 {
        let low = (frames.saturating_sub(1) / VAE_STRIDE[0]) * VAE_STRIDE[0] + 1;
        let what =
            format!("{frames} frames do not fit: the VAE takes 1 plus a multiple of {}", VAE_STRIDE[0]);
        let hint = match frames {
            0 => "the least is 1".to_string(),
            _ => format!("the nearest that fit are {low} and {}", low + VAE_STRIDE[0]),
        };
        return Err(CompileError::usage(what, hint));
    }
    Ok(LatentSize {
        frames: 1 + (frames - 1) / VAE_STRIDE[0],
        height: size.height / VAE_STRIDE[1],
        width: size.width / VAE_STRIDE[2],
    })
}

fn recipe(
    choices: &Choices,
    json: Option<&Json>,
    dit: &dit::Config,
    videos: &[Video],
    tiling: Tiling,
) -> Result<Recipe, CompileError> {
    let sla = |key: &str| json.and_then(|j| j.get("sla")?.get(key));
    let default = Recipe::default();
    let attention = choices.attention.unwrap_or(match dit.has_proj_l {
        true => Attention::SageSla,
        false => Attention::Dense,
    });
    let sparse = matches!(attention, Attention::Sla | Attention::SageSla);
    if sparse && !dit.has_proj_l {
        let what = "sparse-linear attention needs proj_l weights, which this checkpoint does not have";
        return Err(CompileError::usage(what, "use a TurboDiffusion checkpoint, or --attention dense"));
    }
    let linear = choices.linear.unwrap_or(Linear::W8a8);
    if dit.quantized && linear != Linear::W8a8 {
        let word = if linear == Linear::Fp8 { "fp8" } else { "bf16" };
        let what =
            format!("the checkpoint's linears are quantised already, --linear {word} cannot be had from it");
        return Err(CompileError::usage(what, "use --linear w8a8, or the checkpoint before quantisation"));
    }
    let from_json = whole(json, "sla", "block_q")
        .zip(whole(json, "sla", "block_k"))
        .map(|(q, k)| Tiling { block_q: q, block_k: k });
    let tiling = choices.tiling.or(from_json).unwrap_or(tiling);
    let blocks = [tiling.block_q, tiling.block_k];
    if sparse && blocks.iter().any(|&block| block == 0 || !block.is_multiple_of(SUM_ROWS)) {
        let what = format!("attention blocks of {} queries and {} keys", tiling.block_q, tiling.block_k);
        let hint = format!("give whole multiples of {SUM_ROWS}: --tiling 128x64 or 64x128");
        return Err(CompileError::usage(what, hint));
    }
    let topk = choices.topk.or_else(|| sla("topk")?.as_f64()).unwrap_or(default.topk);
    if !(topk > 0.0 && topk <= 1.0) {
        return Err(CompileError::usage(
            format!("top-k ratio {topk}"),
            "give a share in (0, 1], such as 0.1",
        ));
    }
    // What leaves something of the shortest sequence does so of all.
    let shortest = videos.iter().min_by_key(|video| video.latent.tokens()).filter(|_| sparse);
    let kept = |video: &Video, topk: f64| keep_blocks(topk, video.latent.tokens(), tiling.block_k);
    if let Some(video) = shortest.filter(|video| kept(video, topk) == 0) {
        let blocks = video.latent.tokens().div_ceil(tiling.block_k);
        let what = format!("top-k {topk} of {blocks} key blocks keeps none (int({topk} x {blocks}) = 0)");
        let least = (1..=100).map(|i| i as f64 / 100.0).find(|&topk| kept(video, topk) > 0);
        let (size, frames, least) = (video.size, video.frames, least.unwrap_or(1.0));
        let hint = format!("at {size} with {frames} frames the least is --topk {least}");
        return Err(CompileError::usage(what, hint));
    }
    Ok(Recipe { attention, topk, tiling, pv: choices.pv.unwrap_or(PvType::Fp8), linear })
}

fn whole(json: Option<&Json>, part: &str, key: &str) -> Option<usize> {
    json?.get(part)?.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_say_the_nearest_that_do() {
        let error = fit(Size { width: 830, height: 470 }, 81).unwrap_err().to_string();
        assert!(error.contains("832x464") || error.contains("832x480"), "{error}");
        let error = fit(Size { width: 832, height: 480 }, 80).unwrap_err().to_string();
        assert!(error.contains("77 and 81"), "{error}");
        assert!(fit(Size { width: 0, height: 480 }, 81).is_err());
        assert!(fit(Size { width: 4096, height: 480 }, 1).is_err());
        let latent = fit(Size { width: 208, height: 112 }, 33).unwrap();
        assert_eq!((latent.frames, latent.height, latent.width, latent.tokens()), (9, 14, 26, 819));
    }
}
