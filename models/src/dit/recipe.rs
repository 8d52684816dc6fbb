//! The precision and attention choices of one compile.

use serde::{Deserialize, Serialize};
use turbo_ops::common::quant::Format;

/// How self-attention is computed. Cross-attention is always dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// Softmax attention over all keys.
    Dense,
    /// SageAttention over all keys: INT8 QK, 8- or 16-bit PV.
    Sage,
    /// Sparse-linear attention.
    Sla,
    /// Sparse-linear attention whose sparse branch is SageAttention.
    SageSla,
}

/// How the linears inside the blocks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Linear {
    /// In the activation type.
    Bf16,
    /// INT8 weights and activations with 128 x 128 block scales.
    W8a8,
    /// FP8 (E4M3) weights and activations with 128 x 128 block scales.
    Fp8,
}

impl Linear {
    /// Format of the quantised weights and activations, if they are quantised.
    pub fn format(self) -> Option<Format> {
        match self {
            Linear::Bf16 => None,
            Linear::W8a8 => Some(Format::Int8),
            Linear::Fp8 => Some(Format::E4m3),
        }
    }
}

/// Last part of the name of a quantised weight. TurboDiffusion's `-quant` files have INT8 ones.
pub fn weight_name(format: Format) -> &'static str {
    match format {
        Format::Int8 => "int8_weight",
        Format::E4m3 => "fp8_weight",
    }
}

/// Type of the probabilities and values in SageAttention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PvType {
    /// E4M3, values scaled per channel.
    Fp8,
    /// IEEE half.
    F16,
}

impl PvType {
    /// The word the ops use.
    pub fn word(self) -> &'static str {
        match self {
            PvType::Fp8 => "fp8",
            PvType::F16 => "f16",
        }
    }
}

/// Block sizes of queries and keys, 128 x 64 or 64 x 128 in the models that ship.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    /// Queries of a block.
    pub block_q: usize,
    /// Keys of a block.
    pub block_k: usize,
}

/// Every choice that changes what a DiT graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Self-attention.
    pub attention: Attention,
    /// Share of key blocks that sparse attention keeps.
    pub topk: f64,
    /// Block sizes of sparse and SageAttention.
    pub tiling: Tiling,
    /// PV product of SageAttention.
    pub pv: PvType,
    /// Linears inside the blocks.
    pub linear: Linear,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            attention: Attention::SageSla,
            topk: 0.1,
            tiling: Tiling { block_q: 128, block_k: 64 },
            pv: PvType::Fp8,
            linear: Linear::W8a8,
        }
    }
}

/// Key blocks kept for `tokens` tokens: `min(K, int(ratio * K))` of `K` blocks, truncating as upstream
/// (`SLA/utils.py`), so a small ratio of a short sequence keeps none.
pub fn keep_blocks(ratio: f64, tokens: usize, block_k: usize) -> usize {
    let blocks = tokens.div_ceil(block_k.max(1));
    ((ratio * blocks as f64) as usize).min(blocks)
}
