//! What can be wrong with a checkpoint.

use std::io;
use std::path::PathBuf;

use crate::DType;
use crate::index::IndexError;
use crate::safetensors::HeaderError;
use crate::torch::TorchError;

/// Why a checkpoint could not be opened or used. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },

    /// A path that must be a regular file is something else.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },

    /// The content is of no known checkpoint format.
    #[error(
        "{} is not a checkpoint: expected safetensors, a safetensors index or a PyTorch zip file, \
         found {found}",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What its first bytes look like.
        found: String,
    },

    /// A folder in which no file is a checkpoint.
    #[error("{} holds no checkpoint: none of its files is safetensors or a PyTorch zip file", path.display())]
    NothingFound {
        /// The folder.
        path: PathBuf,
    },

    /// A folder that holds several checkpoints where one was wanted.
    #[error(
        "{} holds {} checkpoints where one was expected: {}; hint: name one of them",
        path.display(), found.len(), list(found)
    )]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// First file of each.
        found: Vec<PathBuf>,
    },

    /// Some files of a set `name-00001-of-0000N` are not there.
    #[error(
        "{} is one of {total} shards and {} not with it; hint: open the folder that holds all of them, \
         or finish the download",
        path.display(), shards(missing)
    )]
    IncompleteSet {
        /// A shard that is there.
        path: PathBuf,
        /// How many shards the names promise.
        total: usize,
        /// Numbers of the missing shards, counted from 1.
        missing: Vec<usize>,
    },

    /// A malformed safetensors file.
    #[error("{}: {problem}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Box<HeaderError>,
    },

    /// A malformed or refused PyTorch file.
    #[error("{}: {problem}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Box<TorchError>,
    },

    /// An index that is malformed or does not match its shards.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        problem: Box<IndexError>,
    },

    /// Two files of one checkpoint hold a tensor of the same name.
    #[error("tensor {tensor:?} is in both {} and {}", first.display(), second.display())]
    TensorTwice {
        /// The name.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },

    /// A tensor of a float type was needed.
    #[error("{}: tensor {tensor:?} has type {found}, expected a float type", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Its type.
        found: DType,
    },

    /// A tensor holds NaN or infinite elements.
    #[error("{}: {problem}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Which tensor, how many and where.
        problem: Box<NotFinite>,
    },
}

/// The NaN and infinite elements of a tensor.
#[derive(Debug, thiserror::Error)]
#[error(
    "tensor {tensor:?} ({dtype} {shape:?}) holds {nan} NaN and {inf} infinite of {elements} elements, \
     the first at {first:?}; hint: the file is damaged or its training diverged, fetch it again"
)]
pub struct NotFinite {
    /// Name of the tensor.
    pub tensor: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// All elements.
    pub elements: usize,
    /// NaN elements.
    pub nan: usize,
    /// Infinite elements.
    pub inf: usize,
    /// Row-major index of the first one, one number per axis.
    pub first: Vec<usize>,
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<_> = paths.iter().take(6).map(|p| p.display().to_string()).collect();
    let rest = paths.len() - shown.len();
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

fn shards(missing: &[usize]) -> String {
    match missing {
        [one] => format!("shard {one} is"),
        [first, .., last] => format!("{} shards between {first} and {last} are", missing.len()),
        [] => "none is".to_owned(),
    }
}
