//! PyTorch checkpoints: a ZIP of a pickle and one entry per storage.
//!
//! Opening one reads the pickle and nothing of the weights; tensors are views of the mapped entries.

mod globals;
mod pickle;
mod rebuild;
mod tensors;
mod zip;

use std::collections::HashMap;
use std::ops::Range;

pub use pickle::PickleError;
pub use tensors::{Pickle, PickledTensor};
pub(crate) use zip::is_torch_zip;

/// Longest pickle that is read, in bytes. A checkpoint of a thousand tensors has about 0.2 MB.
pub const MAX_PICKLE_LEN: usize = 64 << 20;

/// First bytes of the format that `torch.save` wrote before version 1.6: a pickled magic number.
pub(crate) const LEGACY_MAGIC: [u8; 15] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e];

/// What is wrong with a PyTorch file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// Not a whole ZIP.
    #[error("not a valid ZIP: {reason}; hint: the file may be truncated, fetch it again")]
    Zip {
        /// What the ZIP reader said.
        reason: String,
    },
    /// A ZIP of something else.
    #[error("ZIP has no entry data.pkl, so torch.save did not write it")]
    NoPickle,
    /// More than one checkpoint in one ZIP.
    #[error("ZIP has data.pkl in both {first:?} and {second:?}, expected one")]
    SeveralPickles {
        /// One folder.
        first: String,
        /// Another.
        second: String,
    },
    /// An entry that cannot be mapped.
    #[error("entry {entry:?} is {how}, expected it stored; hint: load the file and torch.save it again")]
    Unreadable {
        /// The entry, without its folder.
        entry: String,
        /// Compressed or encrypted, and how.
        how: String,
    },
    /// Written on a big-endian machine.
    #[error(
        "weights have byte order {found:?}, expected \"little\"; \
         hint: re-save the file on a little-endian machine"
    )]
    ByteOrder {
        /// The `byteorder` entry.
        found: String,
    },
    /// The old format of bare pickles.
    #[error(
        "PyTorch's format from before version 1.6 is not read; hint: re-save it with \
         torch.save(torch.load(path, weights_only=True), path), or as safetensors"
    )]
    Legacy,
    /// A pickle of unreasonable size.
    #[error("data.pkl has {len} bytes, expected at most {MAX_PICKLE_LEN}")]
    PickleTooLong {
        /// Its length.
        len: usize,
    },
    /// The pickle itself.
    #[error("{0}")]
    Pickle(PickleError),
    /// The pickle is of something else.
    #[error("the file holds {found}, expected a dict of tensors; hint: save the state_dict of the model")]
    NotADict {
        /// What it holds.
        found: &'static str,
    },
    /// A dict key that cannot be part of a name.
    #[error("a key below {prefix:?} is {found}, expected text or an integer")]
    Key {
        /// The names above it.
        prefix: String,
        /// What the key is.
        found: &'static str,
    },
    /// Containers nested without end.
    #[error("dicts are nested deeper than {}", tensors::MAX_DEPTH)]
    TooDeep,
    /// Containers that multiply.
    #[error(
        "dicts have more than {} entries or more than {} bytes of names",
        tensors::MAX_ENTRIES,
        tensors::MAX_NAME_BYTES
    )]
    TooManyEntries,
    /// Two paths of keys join to one name.
    #[error("tensor {tensor:?} appears twice")]
    DuplicateName {
        /// The name.
        tensor: String,
    },
    /// An element type that this crate does not read.
    #[error("tensor {tensor:?} has type {found}, which is not supported")]
    UnsupportedDtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// A tensor reaches beyond its storage.
    #[error(
        "tensor {tensor:?} with offset {offset}, shape {shape:?} and strides {strides:?} \
         does not fit its storage of {numel} elements"
    )]
    OutsideStorage {
        /// The tensor.
        tensor: String,
        /// Index of its first element in the storage.
        offset: usize,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// Length of the storage, in elements.
        numel: usize,
    },
    /// A tensor has more elements than its storage.
    #[error(
        "tensor {tensor:?} with shape {shape:?} repeats the {numel} elements of its storage; \
         hint: save it as .contiguous()"
    )]
    Expanded {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Length of the storage, in elements.
        numel: usize,
    },
    /// A storage is not in the ZIP.
    #[error("tensor {tensor:?} needs entry {entry:?}, which the ZIP does not have")]
    MissingStorage {
        /// The tensor.
        tensor: String,
        /// The entry, without its folder.
        entry: String,
    },
    /// A storage has another length than the pickle says.
    #[error("entry {entry:?} of tensor {tensor:?} has {found} bytes, expected {expected}")]
    StorageLength {
        /// The tensor.
        tensor: String,
        /// The entry, without its folder.
        entry: String,
        /// Bytes that the pickle says.
        expected: usize,
        /// Bytes in the ZIP.
        found: usize,
    },
}

/// A checked PyTorch file.
#[derive(Debug)]
pub struct TorchFile {
    /// Each tensor with the position in the file of the bytes from its first element to its last.
    pub tensors: Vec<(PickledTensor, Range<usize>)>,
    /// Names of what is kept out; see [`Pickle::ignored`].
    pub ignored: Vec<String>,
}

/// Reads the tensors that a `data.pkl` describes. Calls nothing: see [`PickleError::Refused`].
///
/// # Errors
/// [`TorchError`]; memory and time are bounded whatever the input.
pub fn parse_pickle(pickle: &[u8]) -> Result<Pickle, TorchError> {
    if pickle.len() > MAX_PICKLE_LEN {
        return Err(TorchError::PickleTooLong { len: pickle.len() });
    }
    let (objects, root) = pickle::load(pickle).map_err(TorchError::Pickle)?;
    tensors::collect(&objects, root)
}

/// Reads a whole `.pth` file.
///
/// # Errors
/// [`TorchError`]. With `Ok`, every tensor lies inside its storage and every storage inside the file.
pub fn parse_file(file: &[u8]) -> Result<TorchFile, TorchError> {
    if file.starts_with(&LEGACY_MAGIC) {
        return Err(TorchError::Legacy);
    }
    let archive = zip::Archive::open(file)?;
    if let Some(range) = archive.find("byteorder")? {
        let order = &file[range];
        if order.trim_ascii() != b"little" {
            let found = String::from_utf8_lossy(&order[..order.len().min(32)]).into_owned();
            return Err(TorchError::ByteOrder { found });
        }
    }
    let pickle = archive.find(zip::PICKLE)?.ok_or(TorchError::NoPickle)?;
    let Pickle { tensors, ignored } = parse_pickle(&file[pickle])?;

    let mut storages = HashMap::new();
    let mut placed = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let entry = format!("data/{}", tensor.storage);
        let range = match storages.get(&tensor.storage) {
            Some(range) => Range::clone(range),
            None => {
                let Some(range) = archive.find(&entry)? else {
                    return Err(TorchError::MissingStorage { tensor: tensor.name, entry });
                };
                storages.insert(tensor.storage.clone(), range.clone());
                range
            }
        };
        if range.len() != tensor.storage_len {
            let (expected, found) = (tensor.storage_len, range.len());
            return Err(TorchError::StorageLength { tensor: tensor.name, entry, expected, found });
        }
        // Inside the storage, as `parse_pickle` checked.
        let start = range.start + tensor.offset;
        let end = start + tensor.span;
        placed.push((tensor, start..end));
    }
    Ok(TorchFile { tensors: placed, ignored })
}
