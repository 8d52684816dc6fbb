//! The umT5 text encoder.
//!
//! Upstream: TurboDiffusion `rcm/utils/umt5.py` (`T5Encoder`, `UMT5EncoderModel`). Unlike T5, every layer has its own
//! relative position bias; as in T5, attention scores are not scaled.

pub mod names;

use serde_json::Value as Json;
use turbo_graph::{DType, Graph, GraphError, Value};
use turbo_ops::Attrs;

use crate::{Params, Weights};

/// Relative distances beyond this share the last bucket.
const MAX_DISTANCE: f32 = 128.0;
/// Epsilon of every norm.
const EPS: f32 = 1e-6;

/// Sizes of a umT5 encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Hidden size.
    pub dim: usize,
    /// Width of attention, all heads.
    pub dim_attn: usize,
    /// Inner size of the feed-forward network.
    pub dim_ffn: usize,
    /// Attention heads.
    pub heads: usize,
    /// Encoder blocks.
    pub layers: usize,
    /// Buckets of relative positions.
    pub buckets: usize,
}

/// A checkpoint whose tensors do not make a umT5 encoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A tensor that every encoder has is not there.
    #[error("tensor {0} is missing: this is not a umT5 encoder")]
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
}

impl Config {
    /// Reads the sizes from canonical tensors; nothing has to be known from elsewhere.
    ///
    /// # Errors
    /// Missing tensors and impossible shapes.
    pub fn read(weights: &dyn Weights, _json: Option<&Json>) -> Result<Config, ConfigError> {
        let matrix = |name: &str| -> Result<[usize; 2], ConfigError> {
            let (_, shape) = weights.info(name).ok_or_else(|| ConfigError::Missing(name.to_string()))?;
            match shape[..] {
                [n, k] if n > 0 && k > 0 => Ok([n, k]),
                _ => {
                    let expected = "a matrix".to_string();
                    Err(ConfigError::Shape { name: name.to_string(), found: shape, expected })
                }
            }
        };
        let [vocab, dim] = matrix("token_embedding.weight")?;
        let [dim_attn, _] = matrix("blocks.0.attn.q.weight")?;
        let [dim_ffn, _] = matrix("blocks.0.ffn.fc1.weight")?;
        let bias = "blocks.0.pos_embedding.embedding.weight";
        let [buckets, heads] = matrix(bias)?;
        if !dim_attn.is_multiple_of(heads) || buckets < 4 {
            let expected = format!("at least 4 buckets and heads that divide {dim_attn}");
            return Err(ConfigError::Shape { name: bias.to_string(), found: vec![buckets, heads], expected });
        }
        let layers =
            (0..).take_while(|i| weights.info(&format!("blocks.{i}.attn.q.weight")).is_some()).count();
        Ok(Config { vocab, dim, dim_attn, dim_ffn, heads, layers, buckets })
    }
}

/// Token ids `ids [b, text_len]` i64 and `mask [b, text_len]` f32 (1 for the prompt's tokens) to
/// `text_emb [b, text_len, dim]` f32, zero beyond the prompt.
///
/// # Errors
/// Weights that are missing or have another shape, named.
pub fn text_encoder(
    config: &Config,
    params: Params<'_>,
    batch: usize,
    text_len: usize,
) -> Result<Graph, GraphError> {
    let mut g = Graph::new("text_encoder");
    let ids = g.input("ids", DType::I64, &[batch, text_len]);
    let mask = g.input("mask", DType::F32, &[batch, text_len]);
    // Gathered in the stored type: only the prompt's rows are widened.
    let table = params.stored(&mut g, "token_embedding.weight", &[config.vocab, config.dim]);
    let ids = g.reshape(ids, &[batch * text_len]);
    let x = g.gather(table, ids);
    let x = g.cast(x, params.compute);
    let mut x = g.label(x, "token_embedding");

    let encoder = Encoder { config, params, batch, text_len };
    let keys = encoder.keys(&mut g, mask);
    let positions = encoder.positions(&mut g);
    for i in 0..config.layers {
        let name = format!("blocks.{i}");
        x = g.scope(&name, |g| encoder.block(g, x, keys, positions));
        x = g.label(x, &name);
    }
    let x = encoder.norm(&mut g, "norm", x);
    let x = g.label(x, "norm");
    let x = g.cast(x, DType::F32);
    let x = g.reshape(x, &[batch, text_len, config.dim]);
    let rows = g.reshape(mask, &[batch, text_len, 1]);
    // Rows beyond the prompt are replaced, not scaled: what they hold need not be finite.
    let inside = g.cast(rows, DType::Bool);
    let zero = g.scalar(DType::F32, 0.0);
    let x = g.select(inside, x, zero);
    g.output("text_emb", x);
    g.finish()
}

struct Encoder<'a> {
    config: &'a Config,
    params: Params<'a>,
    batch: usize,
    text_len: usize,
}

impl Encoder<'_> {
    /// Which keys are the prompt's, `[b, 1, 1, l]`; the scores of the others become the least finite number.
    fn keys(&self, g: &mut Graph, mask: Value) -> Value {
        let mask = g.reshape(mask, &[self.batch, 1, 1, self.text_len]);
        g.cast(mask, DType::Bool)
    }

    /// Bucket of each pair of positions, `[l, l]` i64.
    fn positions(&self, g: &mut Graph) -> Value {
        let l = self.text_len as i64;
        let pairs = (0..l).flat_map(|query| (0..l).map(move |key| key - query));
        let buckets: Vec<i64> = pairs.map(|distance| bucket(distance, self.config.buckets)).collect();
        let flat = g.constant_i64(&buckets);
        g.reshape(flat, &[self.text_len, self.text_len])
    }

    fn norm(&self, g: &mut Graph, leaf: &str, x: Value) -> Value {
        let dim = self.config.dim;
        let name = g.path(&format!("{leaf}.weight"));
        let weight = self.params.reshaped(g, &name, &[dim], DType::F32, &[1, dim]);
        let zero = g.constant_f32(&[1, dim], &vec![0.0; dim]);
        let attrs = Attrs::new().choice("kind", "rms").float("eps", EPS);
        turbo_ops::emit(g, "TurboNorm", attrs, &[x, weight, zero])[0]
    }

    fn linear(&self, g: &mut Graph, leaf: &str, x: Value, n: usize) -> Value {
        let k = g.dim(x, 1);
        let weight = self.params.get(g, &g.path(&format!("{leaf}.weight")), &[n, k]);
        g.gemm(x, weight, None)
    }

    /// `T5SelfAttention` of rows `[b * l, dim]`.
    fn block(&self, g: &mut Graph, x: Value, mask: Value, positions: Value) -> Value {
        let y = self.norm(g, "norm1", x);
        let y = g.label(y, "norm1");
        let bias = self.position_bias(g, positions);
        let y = g.scope("attn", |g| self.attention(g, y, mask, bias));
        let y = g.label(y, "attn");
        let x = g.add(x, y);
        let y = self.norm(g, "norm2", x);
        let y = g.scope("ffn", |g| self.feed_forward(g, y));
        let y = g.label(y, "ffn");
        g.add(x, y)
    }

    fn attention(&self, g: &mut Graph, x: Value, mask: Value, bias: Value) -> Value {
        let c = self.config;
        let (b, l) = (self.batch, self.text_len);
        let [q, k, v] = ["q", "k", "v"].map(|leaf| {
            let y = self.linear(g, leaf, x, c.dim_attn);
            let y = g.reshape(y, &[b, l, c.heads, c.dim_attn / c.heads]);
            g.transpose(y, &[0, 2, 1, 3])
        });
        let k = g.transpose(k, &[0, 1, 3, 2]);
        let scores = g.matmul(q, k);
        let scores = g.add(scores, bias);
        let least = g.scalar(self.params.compute, f64::from(f32::MIN));
        let scores = g.select(mask, scores, least);
        let p = g.softmax(scores, 3);
        let o = g.matmul(p, v);
        let o = g.transpose(o, &[0, 2, 1, 3]);
        let o = g.reshape(o, &[b * l, c.dim_attn]);
        self.linear(g, "o", o, c.dim)
    }

    /// `[1, heads, l, l]`.
    fn position_bias(&self, g: &mut Graph, positions: Value) -> Value {
        let c = self.config;
        let name = g.path("pos_embedding.embedding.weight");
        let table = self.params.get(g, &name, &[c.buckets, c.heads]);
        let bias = g.gather(table, positions);
        let bias = g.transpose(bias, &[2, 0, 1]);
        let bias = g.reshape(bias, &[1, c.heads, self.text_len, self.text_len]);
        g.label(bias, "position_bias")
    }

    /// `T5FeedForward`: gated, with the tanh form of GELU.
    fn feed_forward(&self, g: &mut Graph, x: Value) -> Value {
        let c = self.config;
        let gate = self.linear(g, "gate.0", x, c.dim_ffn);
        let gate = g.gelu_tanh(gate);
        let up = self.linear(g, "fc1", x, c.dim_ffn);
        let hidden = g.mul(up, gate);
        self.linear(g, "fc2", hidden, c.dim)
    }
}

/// Bucket of `key - query`: half of them for each direction, exact for near positions, logarithmic for far ones
/// (T5, arXiv:1910.10683; upstream `_relative_position_bucket`).
fn bucket(distance: i64, buckets: usize) -> i64 {
    let half = (buckets / 2) as i64;
    let side = if distance > 0 { half } else { 0 };
    let distance = distance.abs();
    let exact = half / 2;
    if distance < exact {
        return side + distance;
    }
    let scaled =
        (distance as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln() * (half - exact) as f32;
    side + (exact + scaled as i64).min(half - 1)
}
