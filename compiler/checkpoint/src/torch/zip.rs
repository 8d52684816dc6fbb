//! The ZIP around a PyTorch checkpoint.
//!
//! `torch.save` (torch/serialization.py, "zipfile serialization") stores, never compresses, and puts
//! everything under one folder: `data.pkl`, `byteorder`, `data/<key>` per storage, and version records.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::TorchError;

/// The pickle among the entries.
pub(crate) const PICKLE: &str = "data.pkl";

/// Where the entries of an archive lie.
pub(super) struct Archive {
    entries: HashMap<String, Entry>,
}

enum Entry {
    /// Position in the file.
    Stored(Range<usize>),
    /// Compressed or encrypted, and how.
    Unreadable(String),
}

impl Archive {
    /// Reads the directory of a whole file. Names lose the folder that they have in common with the pickle.
    pub(super) fn open(file: &[u8]) -> Result<Archive, TorchError> {
        let invalid = |error: zip::result::ZipError| TorchError::Zip { reason: error.to_string() };
        let mut archive = ZipArchive::new(Cursor::new(file)).map_err(invalid)?;
        if archive.has_duplicate_names() {
            return Err(TorchError::Zip { reason: "two entries have the same name".to_owned() });
        }
        let root = root(&archive)?;
        if archive.has_overlapping_entries().map_err(invalid)? {
            return Err(TorchError::Zip { reason: "entries overlap".to_owned() });
        }
        let mut entries = HashMap::with_capacity(archive.len());
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(invalid)?;
            let name = String::from_utf8_lossy(entry.name_raw());
            let Some(name) = name.strip_prefix(root.as_str()) else { continue };
            let name = name.to_owned();
            let range = || {
                let start = usize::try_from(entry.data_start()?).ok()?;
                let end = start.checked_add(usize::try_from(entry.compressed_size()).ok()?)?;
                (end <= file.len()).then_some(start..end)
            };
            let found = if entry.encrypted() {
                Entry::Unreadable("encrypted".to_owned())
            } else if entry.compression() != CompressionMethod::Stored {
                Entry::Unreadable(format!("compressed with {}", entry.compression()))
            } else if entry.compressed_size() != entry.size() {
                return Err(TorchError::Zip {
                    reason: format!("entry {name:?} is stored but has two sizes"),
                });
            } else {
                let outside = || TorchError::Zip { reason: format!("entry {name:?} lies outside the file") };
                Entry::Stored(range().ok_or_else(outside)?)
            };
            entries.insert(name, found);
        }
        Ok(Archive { entries })
    }

    /// Position of an entry in the file; `None` when there is none of this name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Range<usize>>, TorchError> {
        match self.entries.get(name) {
            None => Ok(None),
            Some(Entry::Stored(range)) => Ok(Some(range.clone())),
            Some(Entry::Unreadable(how)) => {
                Err(TorchError::Unreadable { entry: name.to_owned(), how: how.clone() })
            }
        }
    }
}

/// Folder of the pickle, with its slash; empty when the pickle is at the top.
fn root(archive: &ZipArchive<Cursor<&[u8]>>) -> Result<String, TorchError> {
    let mut pickles = archive
        .file_names_raw()
        .map(String::from_utf8_lossy)
        .filter_map(|name| pickle_folder(&name).map(str::to_owned));
    match (pickles.next(), pickles.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(TorchError::NoPickle),
        (Some(first), Some(second)) => Err(TorchError::SeveralPickles { first, second }),
    }
}

/// The folder in front of `data.pkl` when that is what an entry is called.
fn pickle_folder(name: &str) -> Option<&str> {
    name.strip_suffix(PICKLE).filter(|folder| folder.is_empty() || folder.ends_with('/'))
}

/// Whether a file is a PyTorch checkpoint rather than another ZIP. `torch.save` writes the pickle first,
/// which recognises a truncated file too; archives that were packed again are recognised by their directory.
pub(crate) fn is_torch_zip(file: &[u8]) -> bool {
    const NAME_LEN: usize = 26;
    const NAME: usize = 30;
    if !file.starts_with(b"PK\x03\x04") {
        return false;
    }
    let first_name = || {
        let len = file.get(NAME_LEN..)?.first_chunk()?;
        file.get(NAME..)?.get(..usize::from(u16::from_le_bytes(*len)))
    };
    if first_name().is_some_and(|name| pickle_folder(&String::from_utf8_lossy(name)).is_some()) {
        return true;
    }
    ZipArchive::new(Cursor::new(file)).is_ok_and(|archive| {
        archive.file_names_raw().any(|name| pickle_folder(&String::from_utf8_lossy(name)).is_some())
    })
}
