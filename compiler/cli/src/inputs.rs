//! Finds the networks of a model in what the user named.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use turbo_checkpoint::{Checkpoint, scan};

use crate::CompileError;
use crate::choices::Choices;
use crate::network::{Kind, Network};

/// Everything that a compile reads.
pub struct Inputs {
    /// One transformer, or the high-noise expert followed by the low-noise one.
    pub dits: Vec<Network>,
    /// The text encoder.
    pub text_encoder: Network,
    /// The VAE.
    pub vae: Network,
    /// Path of tokenizer.json.
    pub tokenizer: PathBuf,
    /// config.json beside the transformer or in the model's folder.
    pub config: Option<Json>,
    /// Checkpoints in the folder that are no known network, with what they are.
    pub skipped: Vec<String>,
}

/// Which expert a transformer's path speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noise {
    High,
    Low,
}

impl Inputs {
    /// Opens what the choices name and finds the rest in the model's folder, by content.
    ///
    /// # Errors
    /// Networks that are missing or there more than once, files that are damaged or not what they are given
    /// as, experts that cannot be told apart.
    pub fn gather(choices: &Choices) -> Result<Inputs, CompileError> {
        let mut found = Vec::new();
        let mut skipped = Vec::new();
        let folder = choices.model.as_deref().filter(|path| path.is_dir());
        if let Some(folder) = folder {
            for source in scan(folder)? {
                let path = source.paths.first().cloned().unwrap_or_else(|| folder.to_path_buf());
                match Network::identify(&path, Checkpoint::open_source(&source)?) {
                    Ok(network) => found.push(network),
                    Err(error) => skipped.push(error.to_string()),
                }
            }
        } else if let Some(file) = &choices.model {
            found.push(open(file, Kind::Dit, "MODEL")?);
        }
        let text_encoder =
            one(&mut found, Kind::TextEncoder, &choices.text_encoder, "--text-encoder", folder)?;
        let vae = one(&mut found, Kind::Vae, &choices.vae, "--vae", folder)?;
        let dits = transformers(found, choices, &skipped)?;
        let near = dits.first().and_then(|dit| dit.path.parent());
        let config =
            [near, folder].into_iter().flatten().find_map(|dir| read_config(&dir.join("config.json")));
        let tokenizer = match &choices.tokenizer {
            Some(path) => path.clone(),
            None => find_tokenizer(folder.or(near)).ok_or_else(|| {
                CompileError::usage("no tokenizer.json was found", "give one with --tokenizer tokenizer.json")
            })?,
        };
        Ok(Inputs { dits, text_encoder, vae, tokenizer, config: config.transpose()?, skipped })
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.dits.iter().chain([&self.text_encoder, &self.vae])
    }
}

fn open(path: &Path, kind: Kind, flag: &str) -> Result<Network, CompileError> {
    let network = Network::identify(path, Checkpoint::open(path)?)?;
    if network.kind != kind {
        let what = format!("this is a {}, {flag} takes a {}", network.kind.name(), kind.name());
        return Err(CompileError::input(path, what, "check which file goes with which flag"));
    }
    Ok(network)
}

/// The network that a flag names, or the only one of its kind in the folder.
fn one(
    found: &mut Vec<Network>,
    kind: Kind,
    chosen: &Option<PathBuf>,
    flag: &str,
    folder: Option<&Path>,
) -> Result<Network, CompileError> {
    let here: Vec<usize> = (0..found.len()).filter(|&i| found[i].kind == kind).collect();
    if let Some(path) = chosen {
        found.retain(|network| network.kind != kind);
        return open(path, kind, flag);
    }
    match here[..] {
        [only] => Ok(found.remove(only)),
        [] => {
            let place = folder.map_or("among the given files".to_string(), |f| format!("in {}", f.display()));
            let what = format!("no {} was found {place}", kind.name());
            Err(CompileError::usage(what, format!("give one with {flag} FILE")))
        }
        [first, second, ..] => {
            let (a, b) = (found[first].path.display(), found[second].path.display());
            let what = format!("{a} and {b} are both a {}", kind.name());
            Err(CompileError::usage(what, format!("choose one with {flag} FILE")))
        }
    }
}

/// One transformer, or two experts in the order high, low.
fn transformers(
    mut found: Vec<Network>,
    choices: &Choices,
    skipped: &[String],
) -> Result<Vec<Network>, CompileError> {
    let experts_hint = "a two-expert model takes --high-noise FILE and --low-noise FILE";
    match (&choices.high_noise, &choices.low_noise) {
        (Some(high), Some(low)) => {
            let experts = [open(high, Kind::Dit, "--high-noise")?, open(low, Kind::Dit, "--low-noise")?];
            for (expert, wrong) in experts.iter().zip([Noise::Low, Noise::High]) {
                if noise_of(&expert.path) == Some(wrong) {
                    let what = format!("its path speaks of the {wrong:?}-noise expert").to_lowercase();
                    return Err(CompileError::input(&expert.path, what, "the two flags may be swapped"));
                }
            }
            distinct(&experts[0], &experts[1])?;
            return Ok(experts.into());
        }
        (None, None) => {}
        _ => return Err(CompileError::usage("only one of two experts is given", experts_hint)),
    }
    found.retain(|network| network.kind == Kind::Dit);
    match found.len() {
        0 => {
            let mut what = "no diffusion transformer was found".to_string();
            if let Some(first) = skipped.first() {
                what += &format!(" (skipped: {first})");
            }
            Err(CompileError::usage(
                what,
                "give a folder with the model, or the transformer's file, as MODEL",
            ))
        }
        1 => Ok(found),
        2 => {
            found.sort_by_key(|network| noise_of(&network.path) != Some(Noise::High));
            let paths = format!("{} and {}", found[0].path.display(), found[1].path.display());
            match (noise_of(&found[0].path), noise_of(&found[1].path)) {
                (Some(Noise::High), Some(Noise::Low)) => {}
                (Some(a), Some(b)) if a == b => {
                    let what = format!("{paths} both speak of the {a:?}-noise expert").to_lowercase();
                    return Err(CompileError::usage(what, experts_hint));
                }
                _ => {
                    let what = format!("which of {paths} is for high noise cannot be told from their paths");
                    return Err(CompileError::usage(what, experts_hint));
                }
            }
            distinct(&found[0], &found[1])?;
            Ok(found)
        }
        n => {
            let what = format!("{n} diffusion transformers were found");
            Err(CompileError::usage(what, "give the file of one as MODEL; ".to_string() + experts_hint))
        }
    }
}

/// Two experts must not be one and the same: compares the elements of a tensor that training changes.
fn distinct(high: &Network, low: &Network) -> Result<(), CompileError> {
    let same = ["head.modulation", "blocks.0.modulation", "patch_embedding.weight"].iter().all(
        |name| matches!((high.tensor(name), low.tensor(name)), (Some(a), Some(b)) if a.bytes() == b.bytes()),
    );
    if same {
        let what = format!("holds the same weights as {}", high.path.display());
        return Err(CompileError::input(&low.path, what, "the two experts must be different networks"));
    }
    Ok(())
}

/// What a path says: `high` or `low` as a word of its own in the last three parts, or diffusers' folder names.
fn noise_of(path: &Path) -> Option<Noise> {
    path.components().rev().take(3).find_map(|part| {
        let part = part.as_os_str().to_string_lossy().to_lowercase();
        match part.as_str() {
            "transformer" => return Some(Noise::High),
            "transformer_2" => return Some(Noise::Low),
            _ => {}
        }
        part.split(|c: char| !c.is_alphanumeric()).find_map(|word| match word {
            "high" | "highnoise" => Some(Noise::High),
            "low" | "lownoise" => Some(Noise::Low),
            _ => None,
        })
    })
}

fn read_config(path: &Path) -> Option<Result<Json, CompileError>> {
    let bytes = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&bytes).map_err(|e| {
        CompileError::input(path, format!("not JSON: {e}"), "mend or remove it; it only gives defaults")
    }))
}

/// tokenizer.json in the folder or at most three folders below.
fn find_tokenizer(folder: Option<&Path>) -> Option<PathBuf> {
    let mut level = vec![folder?.to_path_buf()];
    for _ in 0..4 {
        if let Some(found) = level.iter().map(|dir| dir.join("tokenizer.json")).find(|path| path.is_file()) {
            return Some(found);
        }
        let below = level.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        let mut below: Vec<PathBuf> = below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        below.sort();
        level = below;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_told_from_their_paths() {
        let noise = |path: &str| noise_of(Path::new(path));
        assert_eq!(noise("TurboWan2.2-I2V-A14B-high-720P.pth"), Some(Noise::High));
        assert_eq!(noise("wan/low_noise_model/diffusion_pytorch_model.safetensors"), Some(Noise::Low));
        assert_eq!(noise("x/transformer_2/diffusion_pytorch_model.safetensors.index.json"), Some(Noise::Low));
        assert_eq!(noise("models/highway/dit.safetensors"), None);
    }
}
