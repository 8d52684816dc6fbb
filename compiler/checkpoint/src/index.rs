//! The index of a sharded checkpoint (`*.safetensors.index.json`).
//!
//! The format (huggingface_hub and transformers, sharded checkpoints): a JSON object whose `weight_map` leads
//! from each tensor's name to the name of the file beside the index that holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::safetensors::Pairs;

/// A checked index.
#[derive(Debug)]
pub struct Index {
    /// From tensor name to shard name, a plain file name.
    pub weight_map: BTreeMap<String, String>,
}

/// What is wrong with an index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Not the JSON that the format asks for.
    #[error("index is not valid: {reason}")]
    Json {
        /// What the JSON reader said.
        reason: String,
    },
    /// An index of no tensors.
    #[error("weight_map is empty, expected at least one tensor")]
    Empty,
    /// A tensor has two entries.
    #[error("tensor {tensor:?} appears twice in weight_map: in {first:?} and in {second:?}")]
    DuplicateName {
        /// The tensor.
        tensor: String,
        /// Shard of one entry.
        first: String,
        /// Shard of the other.
        second: String,
    },
    /// A shard outside the folder of the index.
    #[error(
        "tensor {tensor:?} is mapped to shard {shard:?}, expected the plain name of a file beside the index"
    )]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The name.
        shard: String,
    },
    /// A shard is not there.
    #[error(
        "shard {} is missing; it should hold {tensors} tensors, {example:?} among them; \
         hint: finish the download",
        shard.display()
    )]
    MissingShard {
        /// Path of the shard.
        shard: PathBuf,
        /// Number of tensors that the index expects in it.
        tensors: usize,
        /// One of them.
        example: String,
    },
    /// A tensor is not in its shard.
    #[error("tensor {tensor:?} should be in {}, which does not hold it", shard.display())]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        shard: PathBuf,
    },
    /// A shard holds a tensor that the index does not list at all.
    #[error("{} holds tensor {tensor:?}, which the index does not list", shard.display())]
    UnlistedTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: PathBuf,
    },
    /// A shard holds a tensor that the index expects in another one.
    #[error("tensor {tensor:?} is in {}, but the index lists it in {listed:?}", shard.display())]
    WrongShard {
        /// The tensor.
        tensor: String,
        /// The shard that holds it.
        shard: PathBuf,
        /// The shard that the index names.
        listed: String,
    },
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Pairs<String>,
}

/// Reads and checks an index by itself; whether the shards match it is checked when they are opened.
///
/// # Errors
/// [`IndexError`], naming the tensor where there is one.
pub fn parse_index(json: &[u8]) -> Result<Index, IndexError> {
    let raw: RawIndex =
        serde_json::from_slice(json).map_err(|error| IndexError::Json { reason: error.to_string() })?;
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in raw.weight_map.0 {
        if !is_plain_file_name(&shard) {
            return Err(IndexError::ShardName { tensor, shard });
        }
        if let Some(first) = weight_map.insert(tensor.clone(), shard.clone()) {
            return Err(IndexError::DuplicateName { tensor, first, second: shard });
        }
    }
    if weight_map.is_empty() {
        return Err(IndexError::Empty);
    }
    Ok(Index { weight_map })
}

impl Index {
    /// Names of the shards, each once, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The error for a shard that is not there.
    pub(crate) fn missing_shard(&self, shard: &str, path: PathBuf) -> IndexError {
        let mut expected = self.weight_map.iter().filter(|(_, s)| *s == shard).map(|(tensor, _)| tensor);
        let example = expected.next().cloned().unwrap_or_default();
        IndexError::MissingShard { shard: path, tensors: 1 + expected.count(), example }
    }

    /// Checks the tensors that the shards hold, as pairs of name and shard path, against this index, both
    /// ways.
    pub(crate) fn check<'a>(
        &self,
        folder: &Path,
        held: impl Iterator<Item = (&'a str, &'a Path)>,
    ) -> Result<(), IndexError> {
        let mut found = BTreeSet::new();
        for (tensor, shard) in held {
            let (tensor, shard) = (tensor.to_owned(), shard.to_owned());
            match self.weight_map.get(&tensor) {
                None => return Err(IndexError::UnlistedTensor { tensor, shard }),
                Some(listed) if folder.join(listed) != shard => {
                    return Err(IndexError::WrongShard { tensor, shard, listed: listed.clone() });
                }
                Some(_) => found.insert(tensor),
            };
        }
        match self.weight_map.iter().find(|(tensor, _)| !found.contains(*tensor)) {
            Some((tensor, shard)) => {
                Err(IndexError::MissingTensor { tensor: tensor.clone(), shard: folder.join(shard) })
            }
            None => Ok(()),
        }
    }
}

/// Whether `name` is one file name on every system, without folders, drives or `..`.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_in_the_folder() {
        for good in ["model-00001-of-00002.safetensors", "a b.bin", "..."] {
            assert!(is_plain_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a/", "./a", "..\\x", "C:x", "C:\\x", "a\0"]
        {
            assert!(!is_plain_file_name(bad), "{bad}");
            let json = serde_json::json!({ "weight_map": { "t": bad } }).to_string();
            assert!(matches!(parse_index(json.as_bytes()), Err(IndexError::ShardName { .. })), "{bad}");
        }
    }

    #[test]
    fn malformed_indices_are_refused() {
        let error = |json: &str| parse_index(json.as_bytes()).unwrap_err();
        assert!(matches!(error("{"), IndexError::Json { .. }));
        assert!(matches!(error("[]"), IndexError::Json { .. }));
        assert!(matches!(error(r#"{"weight_map": {"a": 1}}"#), IndexError::Json { .. }));
        assert!(matches!(error(r#"{"weight_map": {}}"#), IndexError::Empty));
        let twice = error(r#"{"weight_map": {"a": "x", "a": "y"}}"#);
        assert_eq!(twice.to_string(), r#"tensor "a" appears twice in weight_map: in "x" and in "y""#);
    }

    #[test]
    fn shards_are_checked_both_ways() {
        let index =
            parse_index(br#"{"metadata": {"total_size": 3}, "weight_map": {"a": "x", "b": "y"}}"#).unwrap();
        let check = |held: &[(&str, &str)]| {
            index.check(Path::new("d"), held.iter().map(|(tensor, shard)| (*tensor, Path::new(*shard))))
        };
        check(&[("a", "d/x"), ("b", "d/y")]).unwrap();
        assert!(
            matches!(check(&[("a", "d/x")]), Err(IndexError::MissingTensor { tensor, .. }) if tensor == "b")
        );
        assert!(matches!(
            check(&[("a", "d/x"), ("b", "d/y"), ("c", "d/y")]),
            Err(IndexError::UnlistedTensor { tensor, .. }) if tensor == "c"
        ));
        assert!(matches!(
            check(&[("a", "d/x"), ("a", "d/y"), ("b", "d/y")]),
            Err(IndexError::WrongShard { tensor, listed, .. }) if tensor == "a" && listed == "x"
        ));
    }
}
