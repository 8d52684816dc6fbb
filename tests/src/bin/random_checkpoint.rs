//! Writes a transformer checkpoint of a real shape with random weights, for measuring compile and run.
//!
//! `random_checkpoint FOLDER DIM FFN LAYERS`: a folder that turbo-compile takes, with the demo's text encoder, VAE
//! and tokenizer beside a bf16 `dit.safetensors` with `proj_l`, streamed to disk.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use turbo_ops::Rng;

/// Text embedding size of the demo's encoder.
const TEXT_DIM: usize = 128;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, dim, ffn, layers] = &arguments[..] else {
        anyhow::bail!("usage: random_checkpoint FOLDER DIM FFN LAYERS");
    };
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    let demo = turbo_tests::demo::folder();
    for name in ["text_encoder.safetensors", "vae.safetensors", "tokenizer.json"] {
        std::fs::copy(demo.join(name), folder.join(name)).with_context(|| name.to_string())?;
    }
    let tensors = tensors(dim.parse()?, ffn.parse()?, layers.parse()?);
    let mut header = Map::new();
    let mut at = 0usize;
    for (name, shape) in &tensors {
        let end = at + shape.iter().product::<usize>() * 2;
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(folder.join("dit.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut rng = Rng::new(1);
    for (name, shape) in &tensors {
        let n: usize = shape.iter().product();
        // Weights as after initialisation: norms near one, the others near 1 / sqrt(inputs).
        let (mean, spread) = match shape[..] {
            _ if name.contains("norm") && name.ends_with("weight") => (1.0, 0.1),
            [_, inputs] => (0.0, (inputs as f32).sqrt().recip()),
            _ => (0.0, 0.02),
        };
        for _ in 0..n.div_ceil(4) {
            let bits = rng.bits().to_le_bytes();
            let four = bits.as_chunks::<2>().0.iter().map(|&b| i16::from_le_bytes(b));
            let values: Vec<u8> = four
                .flat_map(|v| half::bf16::from_f32(mean + f32::from(v) / 18918.0 * spread).to_le_bytes())
                .collect();
            out.write_all(&values)?;
        }
    }
    out.flush()?;
    println!("{}: {} tensors, {at} bytes", folder.display(), tensors.len());
    Ok(())
}

fn tensors(dim: usize, ffn: usize, layers: usize) -> Vec<(String, Vec<usize>)> {
    let mut list = Vec::new();
    let mut linear = |name: String, n: usize, k: usize| {
        list.push((format!("{name}.weight"), vec![n, k]));
        list.push((format!("{name}.bias"), vec![n]));
    };
    linear("patch_embedding".into(), dim, 64);
    linear("text_embedding.0".into(), dim, TEXT_DIM);
    linear("text_embedding.2".into(), dim, dim);
    linear("time_embedding.0".into(), dim, 256);
    linear("time_embedding.2".into(), dim, dim);
    linear("time_projection.1".into(), 6 * dim, dim);
    linear("head.head".into(), 64, dim);
    for i in 0..layers {
        for part in ["self_attn", "cross_attn"] {
            for leaf in ["q", "k", "v", "o"] {
                linear(format!("blocks.{i}.{part}.{leaf}"), dim, dim);
            }
        }
        linear(format!("blocks.{i}.ffn.0"), ffn, dim);
        linear(format!("blocks.{i}.ffn.2"), dim, ffn);
        linear(format!("blocks.{i}.self_attn.attn_op.local_attn.proj_l"), 128, 128);
    }
    for i in 0..layers {
        for part in ["self_attn", "cross_attn"] {
            for leaf in ["norm_q", "norm_k"] {
                list.push((format!("blocks.{i}.{part}.{leaf}.weight"), vec![dim]));
            }
        }
        list.push((format!("blocks.{i}.norm3.weight"), vec![dim]));
        list.push((format!("blocks.{i}.norm3.bias"), vec![dim]));
        list.push((format!("blocks.{i}.modulation"), vec![1, 6, dim]));
    }
    list.push(("head.modulation".into(), vec![1, 2, dim]));
    list
}
