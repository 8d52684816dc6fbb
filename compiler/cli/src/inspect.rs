//! What an engine file says of itself, for people.

use std::fmt::Write;

use turbo_engine_file::{EngineFile, Manifest};

/// Sizes in the unit that reads best.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// The text form of `turbo-compile inspect`.
pub fn text(file: &EngineFile) -> String {
    let m = file.manifest();
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, file, m);
    out
}

fn write_text(out: &mut String, file: &EngineFile, m: &Manifest) -> std::fmt::Result {
    writeln!(out, "{}: {}, schema {}", file.path().display(), size(file.size()), m.schema)?;
    writeln!(out, "made by {} {} for {}", m.created_by.name, m.created_by.version, json(&m.backend.kind))?;
    let model = &m.model;
    writeln!(
        out,
        "\nmodel     {}, {} parameters: dim {}, {} heads, {} layers, ffn {}, latent channels {} in, {} out",
        json(&model.family),
        model.parameters,
        model.dim,
        model.heads,
        model.layers,
        model.ffn_dim,
        model.in_channels,
        model.out_channels
    )?;
    for (i, v) in m.videos.iter().enumerate() {
        let label = if i == 0 { "video" } else { "" };
        write!(
            out,
            "{label:<9} {}x{}, {} frames at {} fps; latent {:?}, {} tokens",
            v.width, v.height, v.frames, v.fps, v.latent, v.tokens
        )?;
        match v.keep_blocks {
            Some(keep) => writeln!(out, ", {keep} key blocks kept")?,
            None => writeln!(out)?,
        }
    }
    let s = &m.sampling;
    write!(out, "sampling  {} steps, {}, sigma_max {}", s.steps, json(&s.sampler), s.sigma_max)?;
    match s.boundary {
        Some(boundary) => writeln!(out, ", low-noise expert below {boundary}")?,
        None => writeln!(out)?,
    }
    writeln!(out, "recipe    attention {}, linear {}", json(&m.recipe.attention), json(&m.recipe.linear))?;
    writeln!(out, "licence   {}", m.licence.as_deref().unwrap_or("not given"))?;

    writeln!(out, "\nstages")?;
    for stage in &m.stages {
        write!(out, "  {:<20} {} with {}", stage.name, stage.graph, stage.weights.join(", "))?;
        match stage.video.and_then(|video| m.videos.get(video as usize)) {
            Some(v) => writeln!(out, ", for {}x{}, {} frames", v.width, v.height, v.frames)?,
            None => writeln!(out)?,
        }
        for (label, tensors) in [("in ", &stage.inputs), ("out", &stage.outputs)] {
            for t in tensors.iter().take(4) {
                writeln!(out, "    {label} {}: {}{:?}", t.name, json(&t.dtype), t.shape)?;
            }
            if tensors.len() > 4 {
                writeln!(out, "    {label} and {} more", tensors.len() - 4)?;
            }
        }
        if !stage.state.is_empty() {
            let bytes: u64 = stage.state.iter().map(|s| 4 * s.shape.iter().product::<u64>()).sum();
            writeln!(out, "    carries {} states, {}", stage.state.len(), size(bytes))?;
        }
    }
    writeln!(out, "\nops")?;
    for op in &m.ops {
        writeln!(out, "  {} version {}", op.name, op.version)?;
    }
    writeln!(out, "\nentries")?;
    for e in &m.entries {
        writeln!(out, "  {:<36} {:>12}  sha256 {}", e.path, size(e.bytes), e.sha256)?;
    }
    writeln!(out, "\nsources")?;
    for s in &m.sources {
        writeln!(out, "  {:<36} {:>12}  sha256 {}", s.name, size(s.bytes), s.sha256)?;
    }
    Ok(())
}

/// An enum as the manifest spells it, without the quotes of a plain word.
fn json<T: serde::Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.trim_matches('"').to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_well() {
        assert_eq!(super::size(0), "0 B");
        assert_eq!(super::size(1536), "1.5 KiB");
        assert_eq!(super::size(3 << 30), "3.0 GiB");
    }
}
