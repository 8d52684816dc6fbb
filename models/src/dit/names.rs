//! Checkpoint names of the DiT in the dialects that are found, and the canonical ones (official Wan's).

/// The output projection of the linear attention branch, below `self_attn.`.
const PROJ_L: &str = "attn_op.local_attn.proj_l";

/// Names of the tensors of `proj_l` in this many blocks.
pub fn proj_l(layers: usize) -> impl Iterator<Item = String> {
    (0..layers).flat_map(|i| ["weight", "bias"].map(|leaf| format!("blocks.{i}.self_attn.{PROJ_L}.{leaf}")))
}

/// Aliases of `proj_l` in converted TurboWan checkpoints, below `self_attn.`.
const PROJ_L_ALIASES: [&str; 3] = ["attn_op.local_attn.proj_l.", "attn_impl.proj_l.", "local_attn.proj_l."];

/// Prefixes that wrap a whole network: ComfyUI single files and training checkpoints. EMA weights are the ones
/// that upstream samples with, so `net_ema.` wins where a file holds both.
pub const PREFIXES: [&str; 4] = ["model.diffusion_model.", "diffusion_model.", "net_ema.", "net."];

/// The naming that a checkpoint follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Official Wan, ComfyUI and TurboDiffusion names.
    Official,
    /// Hugging Face diffusers `WanTransformer3DModel`.
    Diffusers,
}

/// Recognises a DiT by the tensors that every one has; `names` without prefix.
pub fn detect<'a>(names: impl Fn(&str) -> bool + 'a) -> Option<Dialect> {
    if names("head.modulation") && names("patch_embedding.weight") {
        Some(Dialect::Official)
    } else if names("scale_shift_table") && names("condition_embedder.time_proj.weight") {
        Some(Dialect::Diffusers)
    } else {
        None
    }
}

/// The canonical name of a checkpoint tensor, prefix already removed.
pub fn canonical(dialect: Dialect, name: &str) -> String {
    let name = name.replace("_checkpoint_wrapped_module.", "");
    let name = match dialect {
        Dialect::Official => name,
        Dialect::Diffusers => from_diffusers(&name),
    };
    let Some((block, rest)) = name.split_once(".self_attn.") else { return name };
    let alias = PROJ_L_ALIASES.iter().find_map(|alias| rest.strip_prefix(alias));
    match alias {
        Some(leaf) => format!("{block}.self_attn.{PROJ_L}.{leaf}"),
        None => name,
    }
}

/// Top-level renames; longer prefixes first.
const OUTER: [(&str, &str); 8] = [
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("proj_out.", "head.head."),
    ("scale_shift_table", "head.modulation"),
];

/// Renames within a block; diffusers numbers the norms in another order.
const INNER: [(&str, &str); 12] = [
    ("attn1.to_q.", "self_attn.q."),
    ("attn1.to_k.", "self_attn.k."),
    ("attn1.to_v.", "self_attn.v."),
    ("attn1.to_out.0.", "self_attn.o."),
    ("attn2.to_q.", "cross_attn.q."),
    ("attn2.to_k.", "cross_attn.k."),
    ("attn2.to_v.", "cross_attn.v."),
    ("attn2.to_out.0.", "cross_attn.o."),
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
    ("scale_shift_table", "modulation"),
];

fn from_diffusers(name: &str) -> String {
    let rename = |table: &[(&str, &str)], name: &str| {
        table.iter().find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")))
    };
    let Some((index, rest)) = name.strip_prefix("blocks.").and_then(|r| r.split_once('.')) else {
        return rename(&OUTER, name).unwrap_or_else(|| name.to_string());
    };
    let inner = rename(&INNER, rest)
        .unwrap_or_else(|| rest.replacen("attn1.", "self_attn.", 1).replacen("attn2.", "cross_attn.", 1));
    format!("blocks.{index}.{inner}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proj_l_aliases_have_one_name() {
        let wanted = "blocks.3.self_attn.attn_op.local_attn.proj_l.weight";
        for (dialect, name) in [
            (Dialect::Official, "blocks.3.self_attn.attn_op.local_attn.proj_l.weight"),
            (Dialect::Diffusers, "blocks.3.attn1.attn_op.local_attn.proj_l.weight"),
            (Dialect::Diffusers, "blocks.3.attn1.attn_impl.proj_l.weight"),
            (Dialect::Diffusers, "blocks.3.attn1.local_attn.proj_l.weight"),
        ] {
            assert_eq!(canonical(dialect, name), wanted);
        }
        // An alias nobody knows stays as it is and is reported as an unknown tensor.
        let unknown = "blocks.3.self_attn.proj_linear.weight";
        assert_eq!(canonical(Dialect::Official, unknown), unknown);
    }

    #[test]
    fn diffusers_norms_change_places() {
        assert_eq!(canonical(Dialect::Diffusers, "blocks.0.norm2.weight"), "blocks.0.norm3.weight");
        assert_eq!(canonical(Dialect::Diffusers, "blocks.0.scale_shift_table"), "blocks.0.modulation");
        assert_eq!(canonical(Dialect::Diffusers, "scale_shift_table"), "head.modulation");
        assert_eq!(
            canonical(Dialect::Diffusers, "blocks.0.attn2.norm_k.weight"),
            "blocks.0.cross_attn.norm_k.weight"
        );
    }
}
