//! Memory-mapped files.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::Error;

/// A file mapped read-only for as long as this value lives.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<MappedFile, Error> {
        let io = |cause| Error::Io { path: path.to_owned(), cause };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        // SAFETY: the map is read-only and is only handed out as a shared slice that lives no longer than
        // `self`. What no process can rule out is another one that rewrites or truncates the file meanwhile;
        // every reader of a mapped model has that condition, and all numbers read from the map are checked
        // once and then kept outside it, so a rewritten file can spoil weights but not indices.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(MappedFile { path: path.to_owned(), map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that these bytes are not needed soon, so that their pages leave this process's
    /// resident memory. Only a hint: the bytes stay readable, and come from the file again.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: Range<usize>) {
        if !range.is_empty() && range.end <= self.map.len() {
            // SAFETY: the map is a shared, read-only file mapping, for which MADV_DONTNEED drops resident
            // pages and later reads bring the same bytes back from the file: no visible byte changes.
            let advised = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.end - range.start,
                )
            };
            // A system that does not take the hint only keeps the pages longer.
            drop(advised);
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn release(&self, _range: Range<usize>) {}
}
