//! Every checkpoint in a folder.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::index::parse_index;
use crate::map::MappedFile;
use crate::{Error, Format, sniff};

/// Folders within folders that are searched.
const MAX_DEPTH: usize = 3;

/// One checkpoint on disk: what [`Checkpoint::open_source`](crate::Checkpoint::open_source) opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its files. For [`Format::SafetensorsIndex`] the index comes first and its shards follow; otherwise
    /// there is one file, or one per shard of a set `name-00001-of-0000N`.
    pub paths: Vec<PathBuf>,
    /// Format of the first file.
    pub format: Format,
}

/// Finds every checkpoint in a folder and three levels of folders below it, sorted by path.
///
/// Files are found by content. Names matter only to keep shards together: those that an index lists, and
/// those called `name-00001-of-0000N`. Hidden files and folders are skipped, and so is an index none of whose
/// shards is there, which a partial download of a repository with two formats leaves behind.
///
/// # Errors
/// [`Error::Io`] when a folder or file cannot be read, [`Error::Index`] for a malformed index.
pub fn scan(folder: &Path) -> Result<Vec<Source>, Error> {
    let mut files = vec![];
    list(folder, 0, &mut HashSet::new(), &mut files)?;

    let mut sources = vec![];
    let mut found = vec![];
    let mut claimed = HashSet::new();
    for path in files {
        match sniff(&path)? {
            Some(Format::SafetensorsIndex) => {
                let shards = present_shards(&path)?;
                if !shards.is_empty() {
                    claimed.extend(shards.iter().map(|shard| identity(shard)));
                    let paths = [vec![path], shards].concat();
                    sources.push(Source { paths, format: Format::SafetensorsIndex });
                }
            }
            Some(format) => found.push((path, format)),
            None => {}
        }
    }

    let mut sets: BTreeMap<(PathBuf, usize), Source> = BTreeMap::new();
    let mut seen = claimed;
    for (path, format) in found {
        if !seen.insert(identity(&path)) {
            continue;
        }
        match shard_name(&path) {
            Some(shard) => {
                let set = sets.entry((shard.stem, shard.total));
                set.or_insert_with(|| Source { paths: vec![], format }).paths.push(path);
            }
            None => sources.push(Source { paths: vec![path], format }),
        }
    }
    sources.extend(sets.into_values());
    sources.sort_by(|a, b| a.paths.cmp(&b.paths));
    Ok(sources)
}

/// Regular files below `folder`, sorted by path; links are followed.
fn list(
    folder: &Path,
    depth: usize,
    visited: &mut HashSet<PathBuf>,
    files: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    if depth > MAX_DEPTH || !visited.insert(identity(folder)) {
        return Ok(());
    }
    let io = |cause| Error::Io { path: folder.to_owned(), cause };
    let mut entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(io)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // A link whose target is gone is no file.
        match fs::metadata(&path) {
            Ok(kind) if kind.is_dir() => list(&path, depth + 1, visited, files)?,
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// The shards of an index that exist.
fn present_shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let map = MappedFile::open(index)?;
    let parsed = parse_index(map.bytes())
        .map_err(|problem| Error::Index { path: index.to_owned(), problem: Box::new(problem) })?;
    let folder = index.parent().unwrap_or(Path::new(""));
    Ok(parsed.shards().into_iter().map(|shard| folder.join(shard)).filter(|path| path.is_file()).collect())
}

/// What makes two paths the same file.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The name of a shard, `stem-00001-of-0000N`, taken apart.
pub(crate) struct ShardName {
    /// Path without number and extension.
    pub(crate) stem: PathBuf,
    /// Number of this shard, from 1.
    pub(crate) number: usize,
    /// N.
    pub(crate) total: usize,
}

/// Takes a shard's name apart; `None` when the file is not called like one.
pub(crate) fn shard_name(path: &Path) -> Option<ShardName> {
    let (front, total) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (stem, number) = front.rsplit_once('-')?;
    let parse = |digits: &str| digits.parse::<usize>().ok().filter(|_| (1..=6).contains(&digits.len()));
    let (number, total) = (parse(number)?, parse(total)?);
    (1..=total).contains(&number).then(|| ShardName { stem: path.with_file_name(stem), number, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_are_taken_apart() {
        let name = shard_name(Path::new("d/model-00002-of-00003.safetensors")).unwrap();
        assert_eq!((name.stem.as_path(), name.number, name.total), (Path::new("d/model"), 2, 3));
        for other in [
            "model.safetensors",
            "model-00000-of-00003.safetensors",
            "model-00004-of-00003.safetensors",
            "model-x-of-00003.safetensors",
            "00001-of-00002.safetensors",
            "a-1-of-99999999999999999999.bin",
        ] {
            assert!(shard_name(Path::new(other)).is_none(), "{other}");
        }
    }
}
