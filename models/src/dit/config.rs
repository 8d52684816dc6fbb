//! Network sizes, read from the tensors.

use serde_json::Value as Json;

use super::{Linear, names};
use crate::Weights;

/// Channels of one attention head in every Wan model.
const HEAD_DIM: usize = 128;

/// Sizes of a Wan DiT.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Hidden size.
    pub dim: usize,
    /// Inner size of the feed-forward network.
    pub ffn_dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Latent channels in, condition included.
    pub in_dim: usize,
    /// Latent channels out.
    pub out_dim: usize,
    /// Text tokens.
    pub text_len: usize,
    /// Text embedding size.
    pub text_dim: usize,
    /// Size of the sinusoidal time embedding.
    pub freq_dim: usize,
    /// Epsilon of every norm.
    pub eps: f32,
    /// Whether the blocks have `proj_l`, the output projection of the linear attention branch.
    pub has_proj_l: bool,
    /// Whether the linears of the blocks come quantised (TurboDiffusion `-quant`).
    pub quantized: bool,
}

/// A checkpoint whose tensors do not make a Wan DiT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A tensor that every Wan DiT has is not there.
    #[error("tensor {0} is missing: this is not a Wan transformer")]
    Missing(String),
    /// A tensor has a shape that the network cannot have.
    #[error("tensor {name} has shape {found:?}, expected {expected}")]
    Shape {
        /// Canonical tensor name.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// What it should be.
        expected: String,
    },
    /// config.json contradicts the tensors.
    #[error("config.json says {key} = {said}, the tensors say {found}")]
    Contradiction {
        /// Key in config.json.
        key: &'static str,
        /// Its value there.
        said: String,
        /// What the tensors say.
        found: String,
    },
    /// A variant of Wan that is not built yet.
    #[error(
        "this is {0}, which is not supported; supported are Wan 2.1 text-to-video and Wan 2.2 image-to-video"
    )]
    Unsupported(&'static str),
}

impl Config {
    /// Reads the sizes from canonical tensors, and what they cannot tell (`eps`, `text_len`) from config.json.
    ///
    /// # Errors
    /// Missing tensors, impossible shapes, a config.json that contradicts the tensors, an unsupported variant.
    pub fn read(weights: &dyn Weights, json: Option<&Json>) -> Result<Config, ConfigError> {
        if weights.info("img_emb.proj.1.weight").is_some() {
            return Err(ConfigError::Unsupported("Wan 2.1 image-to-video with CLIP"));
        }
        if weights.info("vace_patch_embedding.weight").is_some() {
            return Err(ConfigError::Unsupported("Wan VACE"));
        }
        let [dim, patch_in] = matrix(weights, "patch_embedding.weight")?;
        let [head_out, _] = matrix(weights, "head.head.weight")?;
        let [_, text_dim] = matrix(weights, "text_embedding.0.weight")?;
        let [_, freq_dim] = matrix(weights, "time_embedding.0.weight")?;
        let quantized = weights.info("blocks.0.ffn.0.int8_weight").is_some();
        let ffn = if quantized { "blocks.0.ffn.0.int8_weight" } else { "blocks.0.ffn.0.weight" };
        let [ffn_dim, _] = matrix(weights, ffn)?;
        let layers = (0..).take_while(|i| weights.info(&format!("blocks.{i}.modulation")).is_some()).count();
        if layers == 0 {
            return Err(ConfigError::Missing("blocks.0.modulation".to_string()));
        }
        let whole = |name: &str, n: usize, by: usize| {
            if n > 0 && n.is_multiple_of(by) {
                return Ok(n / by);
            }
            let found = weights.info(name).map(|(_, shape)| shape).unwrap_or_default();
            Err(ConfigError::Shape { name: name.to_string(), found, expected: format!("a multiple of {by}") })
        };
        let config = Config {
            dim,
            ffn_dim,
            heads: whole("patch_embedding.weight", dim, HEAD_DIM)?,
            layers,
            in_dim: whole("patch_embedding.weight", patch_in, 4)?,
            out_dim: whole("head.head.weight", head_out, 4)?,
            text_len: number(json, "text_len").unwrap_or(512),
            text_dim,
            freq_dim,
            eps: json.and_then(|j| j.get("eps")).and_then(Json::as_f64).unwrap_or(1e-6) as f32,
            // One is enough: that the others are missing is then an error that names them.
            has_proj_l: names::proj_l(layers).any(|name| weights.info(&name).is_some()),
            quantized,
        };
        if config.in_dim < config.out_dim {
            return Err(ConfigError::Shape {
                name: "patch_embedding.weight".to_string(),
                found: vec![dim, patch_in],
                expected: format!("at least {} columns", config.out_dim * 4),
            });
        }
        config.agrees_with(json)?;
        Ok(config)
    }

    /// Bytes of the matrices of one block in the denoiser, whose cross-attention takes keys and values from outside.
    pub fn block_bytes(&self, linear: Linear) -> u64 {
        let (dim, ffn) = (self.dim as u64, self.ffn_dim as u64);
        let elements = 6 * dim * dim + 2 * dim * ffn;
        match linear {
            Linear::Bf16 => 2 * elements,
            Linear::W8a8 | Linear::Fp8 => elements,
        }
    }

    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        HEAD_DIM
    }

    /// Whether the network takes an image condition.
    pub fn is_i2v(&self) -> bool {
        self.in_dim > self.out_dim
    }

    fn agrees_with(&self, json: Option<&Json>) -> Result<(), ConfigError> {
        let sizes = [
            ("dim", self.dim),
            ("ffn_dim", self.ffn_dim),
            ("num_heads", self.heads),
            ("num_layers", self.layers),
            ("in_dim", self.in_dim),
            ("out_dim", self.out_dim),
            ("text_dim", self.text_dim),
            ("freq_dim", self.freq_dim),
        ];
        for (key, found) in sizes {
            if let Some(said) = number(json, key).filter(|&said| said != found) {
                return Err(ConfigError::Contradiction {
                    key,
                    said: said.to_string(),
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn number(json: Option<&Json>, key: &str) -> Option<usize> {
    json?.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// Shape of a weight matrix; a convolution's kernel counts as columns.
fn matrix(weights: &dyn Weights, name: &str) -> Result<[usize; 2], ConfigError> {
    let (_, shape) = weights.info(name).ok_or_else(|| ConfigError::Missing(name.to_string()))?;
    match shape[..] {
        [n, k] if n > 0 && k > 0 => Ok([n, k]),
        _ => Err(ConfigError::Shape {
            name: name.to_string(),
            found: shape,
            expected: "a matrix [out, in]".to_string(),
        }),
    }
}
