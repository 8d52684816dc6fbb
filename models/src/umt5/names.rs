//! Checkpoint names of umT5 in the dialects that are found, and the canonical ones (official Wan's).

use std::collections::BTreeSet;

/// The naming that a checkpoint follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Official Wan (`models_t5_umt5-xxl-enc-bf16.pth`).
    Official,
    /// Hugging Face transformers, diffusers and ComfyUI.
    HuggingFace,
}

/// Recognises an encoder by the tensors that every one has.
pub fn detect(names: &BTreeSet<&str>) -> Option<Dialect> {
    let has = |name: &str| names.contains(name);
    if has("token_embedding.weight") && has("blocks.0.attn.q.weight") {
        Some(Dialect::Official)
    } else if (has("shared.weight") || has("encoder.embed_tokens.weight"))
        && has("encoder.block.0.layer.0.SelfAttention.q.weight")
    {
        Some(Dialect::HuggingFace)
    } else {
        None
    }
}

/// The canonical name of a checkpoint tensor; `None` for one that no network needs: ComfyUI's copy of the tokenizer,
/// and the second name of the embedding.
pub fn canonical(dialect: Dialect, name: &str) -> Option<String> {
    match (dialect, name) {
        (_, "spiece_model") | (Dialect::HuggingFace, "encoder.embed_tokens.weight") => None,
        (Dialect::Official, name) => Some(name.to_string()),
        (Dialect::HuggingFace, name) => Some(from_hugging_face(name)),
    }
}

const INNER: [(&str, &str); 10] = [
    ("layer.0.SelfAttention.q.", "attn.q."),
    ("layer.0.SelfAttention.k.", "attn.k."),
    ("layer.0.SelfAttention.v.", "attn.v."),
    ("layer.0.SelfAttention.o.", "attn.o."),
    ("layer.0.SelfAttention.relative_attention_bias.", "pos_embedding.embedding."),
    ("layer.0.layer_norm.", "norm1."),
    ("layer.1.layer_norm.", "norm2."),
    ("layer.1.DenseReluDense.wi_0.", "ffn.gate.0."),
    ("layer.1.DenseReluDense.wi_1.", "ffn.fc1."),
    ("layer.1.DenseReluDense.wo.", "ffn.fc2."),
];

/// A name that follows no rule stays as it is and is reported as an unknown tensor.
fn from_hugging_face(name: &str) -> String {
    match name {
        "shared.weight" => return "token_embedding.weight".to_string(),
        "encoder.final_layer_norm.weight" => return "norm.weight".to_string(),
        _ => {}
    }
    let block = name.strip_prefix("encoder.block.").and_then(|rest| rest.split_once('.'));
    let renamed = block.and_then(|(index, rest)| {
        let (from, to) = INNER.iter().find(|(from, _)| rest.starts_with(from))?;
        Some(format!("blocks.{index}.{to}{}", &rest[from.len()..]))
    });
    renamed.unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugging_face_names_become_official_ones() {
        for (name, wanted) in [
            ("shared.weight", Some("token_embedding.weight")),
            ("encoder.embed_tokens.weight", None),
            (
                "encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight",
                Some("blocks.3.pos_embedding.embedding.weight"),
            ),
            ("encoder.block.11.layer.1.DenseReluDense.wi_0.weight", Some("blocks.11.ffn.gate.0.weight")),
            ("encoder.final_layer_norm.weight", Some("norm.weight")),
            ("decoder.block.0.layer.0.layer_norm.weight", Some("decoder.block.0.layer.0.layer_norm.weight")),
        ] {
            assert_eq!(canonical(Dialect::HuggingFace, name).as_deref(), wanted);
        }
    }
}
