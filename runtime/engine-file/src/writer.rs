//! Writing: entries are streamed into a temporary file beside the target, which the target's name is given to
//! at the end.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::error::{Error, Result, clip};
use crate::layout::{self, Header, LOCAL_CRC_AT};
use crate::{Entry, MANIFEST, MAX_ENTRIES, MAX_MANIFEST, Manifest, Source, name};

/// Bytes that are hashed and written at a time, so that they are still in the cache for the second.
const CHUNK: usize = 1 << 20;

/// Writes one engine file.
///
/// Until [`Writer::finish`] has succeeded, the target is untouched, and everything written is in a hidden temporary
/// file in the same folder. It is removed when the writer is dropped and as soon as anything fails; after an error
/// the writer is of no further use.
#[derive(Debug)]
pub struct Writer {
    target: PathBuf,
    /// None after an error: the temporary file is gone.
    file: Option<BufWriter<NamedTempFile>>,
    position: u64,
    entries: Vec<Written>,
}

/// An entry that is in the file.
#[derive(Debug)]
struct Written {
    entry: Entry,
    crc: u32,
    /// Offset of its local header.
    offset: u64,
}

impl Writer {
    /// Starts an engine file that will replace whatever is at `target`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder does not exist or cannot be written, or if `target` is a folder.
    pub fn create(target: &Path) -> Result<Writer> {
        let io = |cause| Error::io("create", target, cause);
        let Some(name) = target.file_name().filter(|_| !target.is_dir()) else {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        };
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let prefix = format!(".{}.", name.to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // Temporary files are private by default; this one becomes the user's, with the usual permissions.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(io)?;
        Ok(Writer {
            target: target.to_path_buf(),
            file: Some(BufWriter::with_capacity(CHUNK, file)),
            position: 0,
            entries: Vec::new(),
        })
    }

    /// Adds an entry with this content.
    ///
    /// # Errors
    /// As [`Writer::add_stream`].
    pub fn add(&mut self, entry: &str, content: &[u8]) -> Result<()> {
        self.add_stream(entry, content.len() as u64, |out| out.write_all(content))
    }

    /// Adds an entry of `len` bytes, which `content` writes. They are hashed on the way and never held.
    ///
    /// # Errors
    /// [`Error::UnsafeName`], [`Error::Duplicate`], [`Error::TooManyEntries`] for the name; [`Error::WrongLength`]
    /// if `content` writes more or less than `len`; [`Error::Content`] with the error that `content` returned;
    /// [`Error::Io`] if the file cannot be written.
    pub fn add_stream(
        &mut self,
        entry: &str,
        len: u64,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let result = self.accept(entry).and_then(|()| self.write_entry(entry, len, content));
        self.give_up_on_error(result)
    }

    /// The temporary file with everything that was added so far, and the offset of an entry's content in it, for
    /// readers that need what is already written; `None` for an entry that was not added.
    ///
    /// # Errors
    /// [`Error::Io`] if what is still held back cannot be written.
    pub fn written(&mut self, entry: &str) -> Result<Option<(PathBuf, u64)>> {
        let target = &self.target;
        let found = self.entries.iter().find(|written| written.entry.path == entry);
        let (Some(file), Some(found)) = (&mut self.file, found) else { return Ok(None) };
        file.flush().map_err(|cause| Error::io("write", target, cause))?;
        let header = Header { name: entry, crc: 0, bytes: found.entry.bytes, offset: found.offset };
        let content = found.offset + layout::local(&header).len() as u64;
        Ok(Some((file.get_ref().path().to_path_buf(), content)))
    }

    /// SHA-256 of an entry that was added.
    pub fn digest(&self, entry: &str) -> Option<&str> {
        self.find(entry).map(|written| written.entry.sha256.as_str())
    }

    /// Size of an entry that was added.
    pub fn size(&self, entry: &str) -> Option<u64> {
        self.find(entry).map(|written| written.entry.bytes)
    }

    fn find(&self, entry: &str) -> Option<&Written> {
        self.entries.iter().find(|written| written.entry.path == entry)
    }

    /// Writes the manifest, with [`Manifest::entries`] filled in, and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Manifest`] if the manifest would not be accepted by a reader; [`Error::Io`] if the file cannot be
    /// written or renamed.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<()> {
        manifest.entries = self.entries.iter().map(|written| written.entry.clone()).collect();
        manifest.check()?;
        let mut json = serde_json::to_vec_pretty(&manifest)
            .map_err(|cause| Error::Content { entry: MANIFEST.into(), cause: cause.into() })?;
        json.push(b'\n');
        let bytes = json.len() as u64;
        if bytes > MAX_MANIFEST {
            return Err(Error::ManifestTooLarge { bytes, max: MAX_MANIFEST });
        }
        self.write_entry(MANIFEST, bytes, |out| out.write_all(&json))?;

        let headers = self.entries.iter().map(|Written { entry, crc, offset }| {
            layout::central(&Header { name: &entry.path, crc: *crc, bytes: entry.bytes, offset: *offset })
        });
        let mut tail: Vec<u8> = headers.flatten().collect();
        let directory_bytes = tail.len() as u64;
        tail.extend(layout::end(self.entries.len() as u64, self.position, directory_bytes));

        let target = &self.target;
        let io = |cause| Error::io("write", target, cause);
        let Some(mut file) = self.file.take() else { return Err(self.given_up()) };
        file.write_all(&tail).map_err(io)?;
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        // Some disks and network folders report that they are full only here.
        file.as_file().sync_all().map_err(io)?;
        file.persist(target).map_err(|error| Error::io("replace", target, error.error))?;
        Ok(())
    }

    /// Checks that an entry of this name can be added.
    fn accept(&self, entry: &str) -> Result<()> {
        name::check(entry.as_bytes()).map_err(|why| Error::UnsafeName { name: clip(entry), why })?;
        let taken = self.entries.iter().map(|written| written.entry.path.as_str()).chain([MANIFEST]);
        for first in taken {
            if first.eq_ignore_ascii_case(entry) {
                return Err(Error::Duplicate { first: first.into(), second: entry.into() });
            }
        }
        // One place is the manifest's.
        let found = self.entries.len() as u64 + 2;
        if found > MAX_ENTRIES {
            return Err(Error::TooManyEntries { found, max: MAX_ENTRIES });
        }
        Ok(())
    }

    fn write_entry(
        &mut self,
        entry: &str,
        len: u64,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let target = &self.target;
        let io = |cause| Error::io("write", target, cause);
        let offset = self.position;
        let Some(file) = &mut self.file else { return Err(self.given_up()) };
        // The CRC-32 is known only after the content: its place is filled then.
        let header = layout::local(&Header { name: entry, crc: 0, bytes: len, offset });
        file.write_all(&header).map_err(io)?;

        let mut out = Hashing {
            file,
            crc: crc32fast::Hasher::new(),
            sha: Sha256::new(),
            written: 0,
            len,
            failure: None,
        };
        let result = content(&mut out);
        let Hashing { crc, sha, written, failure, .. } = out;
        // What went wrong here counts, not what `content` made of it.
        match failure {
            Some(Failure::TooLong(found)) => {
                return Err(Error::WrongLength { entry: entry.into(), expected: len, found });
            }
            Some(Failure::Disk(cause)) => return Err(io(cause)),
            None => {}
        }
        result.map_err(|cause| Error::Content { entry: entry.into(), cause })?;
        if written != len {
            return Err(Error::WrongLength { entry: entry.into(), expected: len, found: written });
        }

        let crc = crc.finalize();
        let end = offset + header.len() as u64 + len;
        file.seek(SeekFrom::Start(offset + LOCAL_CRC_AT)).map_err(io)?;
        file.write_all(&crc.to_le_bytes()).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        self.position = end;
        let entry = Entry { path: entry.into(), bytes: len, sha256: hex(&sha.finalize()) };
        self.entries.push(Written { entry, crc, offset });
        Ok(())
    }

    fn given_up(&self) -> Error {
        Error::GivenUp { path: self.target.clone() }
    }

    fn give_up_on_error<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.file = None; // dropping the temporary file removes it
        }
        result
    }
}

/// Hashes what passes through to the file, and refuses more than was announced.
struct Hashing<'a> {
    file: &'a mut BufWriter<NamedTempFile>,
    crc: crc32fast::Hasher,
    sha: Sha256,
    written: u64,
    len: u64,
    failure: Option<Failure>,
}

enum Failure {
    /// At least so many bytes.
    TooLong(u64),
    Disk(io::Error),
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("writing this entry has failed before"));
        }
        let room = self.len - self.written;
        if bytes.len() as u64 > room {
            self.failure = Some(Failure::TooLong(self.written.saturating_add(bytes.len() as u64)));
            return Err(io::Error::other("more bytes than announced"));
        }
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.crc.update(chunk);
        self.sha.update(chunk);
        if let Err(cause) = self.file.write_all(chunk) {
            let kind = cause.kind();
            self.failure = Some(Failure::Disk(cause));
            return Err(kind.into());
        }
        self.written += chunk.len() as u64;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source {
    /// Name, size and SHA-256 of the file at `path`, which is read from start to end.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read.
    pub fn of_file(path: &Path) -> Result<Source> {
        let io = |cause| Error::io("read", path, cause);
        let mut file = File::open(path).map_err(io)?;
        let mut buffer = vec![0; CHUNK];
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Source { name, bytes, sha256: hex(&hash.finalize()) })
    }
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(digest.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
