//! Checkpoint names of the VAE in the dialects that are found, and the canonical ones (official Wan's).

use std::collections::BTreeSet;

/// The naming that a checkpoint follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Official Wan and ComfyUI.
    Official,
    /// Hugging Face diffusers `AutoencoderKLWan`.
    Diffusers,
}

/// Prefixes that wrap a whole VAE.
const PREFIXES: [&str; 2] = ["vae.", "first_stage_model."];

fn bare(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Recognises a VAE by the tensors that every one has.
pub fn detect(names: &BTreeSet<&str>) -> Option<Dialect> {
    let has = |wanted: &str| names.iter().any(|name| bare(name) == wanted);
    if has("decoder.middle.0.residual.0.gamma") && has("decoder.conv1.weight") {
        Some(Dialect::Official)
    } else if has("decoder.mid_block.resnets.0.norm1.gamma") && has("decoder.conv_in.weight") {
        Some(Dialect::Diffusers)
    } else {
        None
    }
}

/// The canonical name of a checkpoint tensor; `None` for one that no network needs.
pub fn canonical(dialect: Dialect, name: &str) -> Option<String> {
    let name = bare(name);
    Some(match dialect {
        Dialect::Official => name.to_string(),
        Dialect::Diffusers => from_diffusers(name),
    })
}

/// Renames outside blocks.
const OUTER: [(&str, &str); 8] = [
    ("quant_conv.", "conv1."),
    ("post_quant_conv.", "conv2."),
    ("encoder.conv_in.", "encoder.conv1."),
    ("decoder.conv_in.", "decoder.conv1."),
    ("encoder.norm_out.", "encoder.head.0."),
    ("decoder.norm_out.", "decoder.head.0."),
    ("encoder.conv_out.", "encoder.head.2."),
    ("decoder.conv_out.", "decoder.head.2."),
];

/// Renames within a residual block.
const INNER: [(&str, &str); 5] = [
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
];

fn rename(table: &[(&str, &str)], name: &str) -> Option<String> {
    table.iter().find_map(|(from, to)| name.strip_prefix(from).map(|rest| format!("{to}{rest}")))
}

fn inner(rest: &str) -> String {
    rename(&INNER, rest).unwrap_or_else(|| rest.to_string())
}

/// A name that follows no rule stays as it is and is reported as an unknown tensor.
fn from_diffusers(name: &str) -> String {
    if let Some(renamed) = rename(&OUTER, name) {
        return renamed;
    }
    let block = |name: &str| -> Option<String> {
        let (side, rest) = name.split_once('.')?;
        if let Some(rest) = rest.strip_prefix("mid_block.resnets.") {
            let (index, rest) = rest.split_once('.')?;
            // Residual, attention, residual.
            return Some(format!("{side}.middle.{}.{}", 2 * index.parse::<usize>().ok()?, inner(rest)));
        }
        if let Some(rest) = rest.strip_prefix("mid_block.attentions.0.") {
            return Some(format!("{side}.middle.1.{rest}"));
        }
        if let Some(rest) = rest.strip_prefix("down_blocks.") {
            let (index, rest) = rest.split_once('.')?;
            return Some(format!("{side}.downsamples.{index}.{}", inner(rest)));
        }
        let rest = rest.strip_prefix("up_blocks.")?;
        let (index, rest) = rest.split_once('.')?;
        // Each block of diffusers is three residual blocks and a resampler.
        let first = 4 * index.parse::<usize>().ok()?;
        if let Some(rest) = rest.strip_prefix("upsamplers.0.") {
            return Some(format!("{side}.upsamples.{}.{rest}", first + 3));
        }
        let (index, rest) = rest.strip_prefix("resnets.")?.split_once('.')?;
        Some(format!("{side}.upsamples.{}.{}", first + index.parse::<usize>().ok()?, inner(rest)))
    };
    block(name).unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffusers_names_become_official_ones() {
        for (name, wanted) in [
            ("quant_conv.weight", "conv1.weight"),
            ("encoder.conv_in.bias", "encoder.conv1.bias"),
            ("encoder.down_blocks.3.conv_shortcut.weight", "encoder.downsamples.3.shortcut.weight"),
            ("encoder.down_blocks.5.time_conv.weight", "encoder.downsamples.5.time_conv.weight"),
            ("encoder.down_blocks.5.resample.1.bias", "encoder.downsamples.5.resample.1.bias"),
            ("decoder.mid_block.resnets.1.conv2.weight", "decoder.middle.2.residual.6.weight"),
            ("decoder.mid_block.attentions.0.to_qkv.weight", "decoder.middle.1.to_qkv.weight"),
            ("decoder.up_blocks.1.resnets.0.norm1.gamma", "decoder.upsamples.4.residual.0.gamma"),
            ("decoder.up_blocks.2.upsamplers.0.resample.1.weight", "decoder.upsamples.11.resample.1.weight"),
            ("decoder.norm_out.gamma", "decoder.head.0.gamma"),
        ] {
            assert_eq!(canonical(Dialect::Diffusers, name).as_deref(), Some(wanted));
        }
        let prefixed = canonical(Dialect::Official, "first_stage_model.decoder.conv1.weight");
        assert_eq!(prefixed.as_deref(), Some("decoder.conv1.weight"));
    }
}
