//! What several ops share.

pub mod attn;
pub mod attn_expand;
pub mod attn_linear;
pub mod attn_pack;
pub mod attn_reference;
pub mod f8;
pub mod norm;
pub mod quant;
pub mod simd;
pub mod sums;
pub mod w8a8;
