//! Reading: the mapped engine file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::check::parse_manifest;
use crate::directory::{self, Located};
use crate::error::{Error, Result, clip};
use crate::writer::hex;
use crate::{MANIFEST, MAX_MANIFEST, Manifest, WEIGHTS_FOLDER};

/// Up to this size (256 MiB), [`EngineFile::open`] checks all entries; beyond it, all but the weights.
pub const CHECK_ALL_UP_TO: u64 = 256 << 20;

/// Bytes that are hashed between two reports of progress.
const CHUNK: usize = 4 << 20;

/// What an engine file holds: its manifest and where its entries are.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    manifest: Manifest,
    entries: BTreeMap<String, Located>,
}

/// Reads directory and manifest of the engine file `bytes`. Nothing is read besides the headers and the manifest.
///
/// # Errors
/// Every departure from the layout of the [crate] documentation is an error of its own; no input panics.
pub fn parse(bytes: &[u8]) -> Result<Parsed> {
    let located = directory::read(bytes)?;
    let mut entries: BTreeMap<String, Located> =
        located.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    // The directory reader has seen to it that there is one.
    let found = entries.remove(MANIFEST).ok_or(Error::NoSuchEntry { entry: MANIFEST.into() })?;
    if found.data.len() as u64 > MAX_MANIFEST {
        return Err(Error::ManifestTooLarge { bytes: found.data.len() as u64, max: MAX_MANIFEST });
    }
    check_crc(bytes, &found)?;
    let manifest = parse_manifest(&bytes[found.data])?;

    for entry in &manifest.entries {
        let Some(located) = entries.get(&entry.path) else {
            return Err(Error::NotPresent { entry: entry.path.clone() });
        };
        let found = located.data.len() as u64;
        if found != entry.bytes {
            return Err(Error::SizeDiffers { entry: entry.path.clone(), expected: entry.bytes, found });
        }
    }
    if let Some(extra) = entries.keys().find(|name| manifest.entry(name).is_none()) {
        return Err(Error::NotListed { entry: extra.clone() });
    }
    Ok(Parsed { manifest, entries })
}

impl Parsed {
    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the data of the entry is in the file, in bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchEntry`].
    pub fn range(&self, entry: &str) -> Result<Range<usize>> {
        Ok(self.located(entry)?.data.clone())
    }

    /// What opening checks beyond [`parse`], for the same `bytes`: the CRC-32 of the entries (see [crate]).
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        let all = bytes.len() as u64 <= CHECK_ALL_UP_TO;
        let mut checked =
            self.entries.values().filter(|entry| all || !entry.name.starts_with(WEIGHTS_FOLDER));
        checked.try_for_each(|entry| check_crc(bytes, entry))
    }

    /// Checks the SHA-256 of one entry, for the same `bytes`.
    fn verify(&self, bytes: &[u8], entry: &str, mut progress: impl FnMut(u64)) -> Result<()> {
        let data = data(bytes, self.located(entry)?)?;
        let expected = self.manifest.entry(entry).map(|entry| entry.sha256.clone()).unwrap_or_default();
        let mut hash = Sha256::new();
        for chunk in data.chunks(CHUNK) {
            hash.update(chunk);
            progress(chunk.len() as u64);
        }
        let found = hex(&hash.finalize());
        if found == expected {
            return Ok(());
        }
        Err(Error::Damaged { entry: entry.into(), check: "SHA-256", expected, found })
    }

    fn located(&self, entry: &str) -> Result<&Located> {
        self.entries.get(entry).ok_or_else(|| Error::NoSuchEntry { entry: clip(entry) })
    }
}

/// The data of `entry`: an error instead of a panic if `bytes` are not the ones that it was parsed from.
fn data<'a>(bytes: &'a [u8], entry: &Located) -> Result<&'a [u8]> {
    bytes.get(entry.data.clone()).ok_or_else(|| Error::Truncated {
        part: format!("entry `{}`", entry.name),
        has: bytes.len() as u64,
        needs: Some(entry.data.end as u64),
    })
}

fn check_crc(bytes: &[u8], entry: &Located) -> Result<()> {
    let found = crc32fast::hash(data(bytes, entry)?);
    if found == entry.crc {
        return Ok(());
    }
    Err(Error::Damaged {
        entry: entry.name.clone(),
        check: "CRC-32",
        expected: format!("{:08x}", entry.crc),
        found: format!("{found:08x}"),
    })
}

/// An open engine file, mapped into memory: entries are slices of the mapping, nothing is copied.
#[derive(Debug)]
pub struct EngineFile {
    path: PathBuf,
    map: Mmap,
    parsed: Parsed,
}

impl EngineFile {
    /// Opens and checks the engine file at `path`; the [crate] documentation says what is checked.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped, otherwise [`Error::InFile`] with what is wrong.
    pub fn open(path: &Path) -> Result<EngineFile> {
        let io = |cause| Error::io("open", path, cause);
        let file = File::open(path).map_err(io)?;
        let kind = file.metadata().map_err(io)?;
        if kind.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() {
            return Err(io(io::Error::other("not a regular file, so it cannot be mapped")));
        }
        if kind.len() == 0 {
            return Err(Error::Empty.in_file(path));
        }
        // SAFETY: the mapping is read-only and private to this process' view of the file. It stays valid as long as
        // nobody shortens or rewrites the file in place, which this crate never does: `Writer` replaces files by
        // renaming, and a replaced file lives on until it is unmapped. Everything read from the mapping is checked
        // as untrusted bytes.
        let map = unsafe { Mmap::map(&file) }.map_err(|cause| Error::io("map", path, cause))?;
        let parsed = parse(&map).map_err(|problem| problem.in_file(path))?;
        parsed.check(&map).map_err(|problem| problem.in_file(path))?;
        Ok(EngineFile { path: path.to_path_buf(), map, parsed })
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the whole file in bytes.
    pub fn size(&self) -> u64 {
        self.map.len() as u64
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        self.parsed.manifest()
    }

    /// The content of an entry, aligned to [`crate::ALIGNMENT`] bytes in memory as well.
    ///
    /// # Errors
    /// [`Error::NoSuchEntry`]. The manifest is not among the entries: see [`EngineFile::manifest`].
    pub fn bytes(&self, entry: &str) -> Result<&[u8]> {
        let range = self.range(entry)?;
        Ok(&self.map[range])
    }

    /// Where the content of an entry is in the file.
    ///
    /// # Errors
    /// [`Error::NoSuchEntry`].
    pub fn range(&self, entry: &str) -> Result<Range<usize>> {
        self.parsed.range(entry).map_err(|problem| problem.in_file(&self.path))
    }

    /// Checks the SHA-256 of every entry. Reads the whole file.
    ///
    /// # Errors
    /// [`Error::Damaged`] for the first entry whose content differs.
    pub fn verify(&self) -> Result<()> {
        let mut entries = self.manifest().entries.iter();
        entries.try_for_each(|entry| self.verify_entry(&entry.path, |_| {}))
    }

    /// Checks the SHA-256 of one entry; `progress` is told, every few megabytes, how many more bytes are done.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::NoSuchEntry`].
    pub fn verify_entry(&self, entry: &str, progress: impl FnMut(u64)) -> Result<()> {
        self.parsed.verify(&self.map, entry, progress).map_err(|problem| problem.in_file(&self.path))
    }
}

#[cfg(test)]
mod tests;
