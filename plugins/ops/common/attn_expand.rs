//! The attention ops in standard ONNX operators: scores of all pairs, masked where a block is not kept.

use turbo_graph::{DType, Graph, Value};

use super::attn::Form;
use super::attn_linear::LINEAR_EPS;

/// `[b * l, heads * d]` as `[b, heads, l, d]` in f32.
pub fn heads(g: &mut Graph, x: Value, [b, heads]: [usize; 2]) -> Value {
    let (rows, c) = (g.dim(x, 0), g.dim(x, 1));
    let x = g.cast(x, DType::F32);
    let x = g.reshape(x, &[b, rows / b.max(1), heads, c / heads.max(1)]);
    g.transpose(x, &[0, 2, 1, 3])
}

/// `[b, heads, l, d]` back to `[b * l, heads * d]`.
pub fn join(g: &mut Graph, x: Value, dtype: DType) -> Value {
    let [b, h, l, d] = [0, 1, 2, 3].map(|i| g.dim(x, i));
    let x = g.transpose(x, &[0, 2, 1, 3]);
    let x = g.reshape(x, &[b * l, h * d]);
    g.cast(x, dtype)
}

/// Rows of `[b, h, l, d]` padded to whole blocks: `[b, h, blocks, block, d]`.
pub fn blocks(g: &mut Graph, x: Value, block: usize) -> Value {
    let [b, h, l, d] = [0, 1, 2, 3].map(|i| g.dim(x, i));
    let count = l.div_ceil(block.max(1));
    let x = g.pad(x, &[(0, 0), (0, 0), (0, count * block - l), (0, 0)], 0.0);
    g.reshape(x, &[b, h, count, block, d])
}

/// INT8 values, as f32, and the scale of each row `[b, h, l, 1]`.
fn quantize(g: &mut Graph, x: Value, block: usize) -> (Value, Value) {
    let [b, h, l, d] = [0, 1, 2, 3].map(|i| g.dim(x, i));
    let tiles = blocks(g, x, block);
    let amax = g.abs(tiles);
    let amax = g.reduce_max(amax, &[3, 4]);
    let limit = g.scalar(DType::F32, 127.0);
    let scale = g.div(amax, limit);
    let scale = g.add_scalar(scale, 1e-7);
    let q = g.div(tiles, scale);
    // Half away from zero: floor(|q| + 0.5) with the sign of q.
    let sign = g.sign(q);
    let magnitude = g.abs(q);
    let magnitude = g.add_scalar(magnitude, 0.5);
    let magnitude = g.floor(magnitude);
    let q = g.mul(magnitude, sign);
    let count = g.dim(tiles, 2);
    let q = g.reshape(q, &[b, h, count * block, d]);
    let q = g.slice(q, 2, 0, l);
    let scale = g.expand(scale, &[b, h, count, block, 1]);
    let scale = g.reshape(scale, &[b, h, count * block, 1]);
    (q, g.slice(scale, 2, 0, l))
}

/// Mean of keys `[b, h, s, d]`, `[b, h, 1, d]`, from the sums of their rows `[b, sums, h * d]`.
pub fn key_mean(g: &mut Graph, sums: Value, h: usize, keys: Value) -> Value {
    let (b, c, s) = (g.dim(sums, 0), g.dim(sums, 2), g.dim(keys, 2));
    let sum = g.reduce_sum(sums, &[1]);
    let sum = g.reshape(sum, &[b, h, 1, c / h.max(1)]);
    g.mul_scalar(sum, 1.0 / s.max(1) as f64)
}

/// Softmax attention of `[b, h, l, d]` with `[b, h, s, d]`; the SageAttention forms smooth keys by their mean. `mask` is 1
/// where a pair of blocks is kept, `[b, h, query blocks, key blocks]`.
pub fn attend(
    g: &mut Graph,
    form: Form,
    [q, k, v]: [Value; 3],
    mean: Option<Value>,
    [block_q, block_k]: [usize; 2],
    mask: Option<Value>,
) -> Value {
    let [b, h, l, d] = [0, 1, 2, 3].map(|i| g.dim(q, i));
    let s = g.dim(k, 2);
    let (mut q, mut k, mut v, mut scales) = (q, k, v, None);
    if let Some(mean) = mean {
        k = g.sub(k, mean);
    }
    if form != Form::Exact {
        let (quantized, q_scale) = quantize(g, q, block_q);
        q = quantized;
        let (quantized, k_scale) = quantize(g, k, block_k);
        k = quantized;
        scales = Some((q_scale, g.transpose(k_scale, &[0, 1, 3, 2])));
    }
    let mut v_scale = None;
    match form {
        Form::Exact => {}
        Form::SageF16 => v = round_to(g, v, DType::F16),
        Form::SageFp8 => {
            let amax = g.abs(v);
            let amax = g.reduce_max(amax, &[2]);
            v_scale = Some(g.mul_scalar(amax, 1.0 / 2.25));
            let tiny = g.scalar(DType::F32, 1e-30);
            let amax = g.max(amax, tiny);
            let limit = g.scalar(DType::F32, 2.25);
            let factor = g.div(limit, amax);
            v = g.mul(v, factor);
            v = round_to(g, v, DType::F8E4M3);
        }
    }
    let k = g.transpose(k, &[0, 1, 3, 2]);
    let scores = g.matmul(q, k);
    let mut scores = g.mul_scalar(scores, std::f64::consts::LOG2_E / (d as f64).sqrt());
    if let Some((q_scale, k_scale)) = scales {
        scores = g.mul(scores, q_scale);
        scores = g.mul(scores, k_scale);
    }
    if let Some(mask) = mask {
        let (nq, nk) = (g.dim(mask, 2), g.dim(mask, 3));
        let mask = g.reshape(mask, &[b, h, nq, 1, nk, 1]);
        let mask = g.expand(mask, &[b, h, nq, block_q, nk, block_k]);
        let mask = g.reshape(mask, &[b, h, nq * block_q, nk * block_k]);
        let mask = g.slice(mask, 2, 0, l);
        let mask = g.slice(mask, 3, 0, s);
        let mask = g.cast(mask, DType::Bool);
        let never = g.scalar(DType::F32, -1e30);
        scores = g.select(mask, scores, never);
    }
    // Rounded probabilities are relative to the maximum of their own and all earlier blocks.
    let block = if form == Form::Exact { s.max(1) } else { block_k };
    let count = s.div_ceil(block);
    let scores = g.pad(scores, &[(0, 0), (0, 0), (0, 0), (0, count * block - s)], -1e30);
    let scores = g.reshape(scores, &[b, h, l, count, block]);
    let max = g.reduce_max(scores, &[4]);
    let max = running_max(g, max);
    let last = g.slice(max, 3, count.saturating_sub(1), count);
    let shrink = g.sub(max, last);
    let shrink = exp2(g, shrink);
    let mut exponent = g.sub(scores, max);
    if form == Form::SageFp8 {
        exponent = g.add_scalar(exponent, 8.807);
    }
    let p = exp2(g, exponent);
    let rounded = match form {
        Form::Exact => p,
        Form::SageF16 => round_to(g, p, DType::F16),
        Form::SageFp8 => round_to(g, p, DType::F8E4M3),
    };
    let weights = g.mul(if form == Form::SageF16 { rounded } else { p }, shrink);
    let sum = g.reduce_sum(weights, &[3, 4]);
    let sum = g.reshape(sum, &[b, h, l, 1]);
    let p = g.mul(rounded, shrink);
    let p = g.reshape(p, &[b, h, l, count * block]);
    let p = g.slice(p, 3, 0, s);
    let o = g.matmul(p, v);
    let o = g.div(o, sum);
    match v_scale {
        Some(scale) => g.mul(o, scale),
        None => o,
    }
}

/// Maximum of this and all earlier entries of axis 3 of `[b, h, l, count, 1]`, in steps of doubled reach.
fn running_max(g: &mut Graph, mut x: Value) -> Value {
    let count = g.dim(x, 3);
    let mut reach = 1;
    while reach < count {
        let head = g.slice(x, 3, 0, reach);
        let earlier = g.slice(x, 3, 0, count - reach);
        let later = g.slice(x, 3, reach, count);
        let tail = g.max(earlier, later);
        x = g.concat(&[head, tail], 3);
        reach *= 2;
    }
    x
}

fn exp2(g: &mut Graph, x: Value) -> Value {
    let x = g.mul_scalar(x, std::f64::consts::LN_2);
    g.exp(x)
}

fn round_to(g: &mut Graph, x: Value, dtype: DType) -> Value {
    let x = g.cast(x, dtype);
    g.cast(x, DType::F32)
}

/// Kept blocks `[b, h, query blocks, keep]` as ones in `[b, h, query blocks, key blocks]`.
pub fn mask(g: &mut Graph, lut: Value, key_blocks: usize) -> Value {
    let [b, h, nq, keep] = [0, 1, 2, 3].map(|i| g.dim(lut, i));
    let indices = g.cast(lut, DType::I64);
    let zeros = g.constant_f32(&[b, h, nq, key_blocks], &vec![0.0; b * h * nq * key_blocks]);
    let ones = g.constant_f32(&[b, h, nq, keep], &vec![1.0; b * h * nq * keep]);
    g.scatter_last(zeros, indices, ones)
}

/// The linear branch through `proj_l`, `[b, h, l, d]`.
pub fn linear_branch(g: &mut Graph, [q, k, v]: [Value; 3], weight: Value, bias: Value) -> Value {
    let q = g.softmax(q, 3);
    let k = g.softmax(k, 3);
    let sum = g.reduce_sum(k, &[2]);
    let k = g.transpose(k, &[0, 1, 3, 2]);
    let kv = g.matmul(k, v);
    let o = g.matmul(q, kv);
    let denominator = g.mul(q, sum);
    let denominator = g.reduce_sum(denominator, &[3]);
    let denominator = g.add_scalar(denominator, f64::from(LINEAR_EPS));
    let o = g.div(o, denominator);
    let weight = g.transpose(weight, &[1, 0]);
    let o = g.matmul(o, weight);
    g.add(o, bias)
}
