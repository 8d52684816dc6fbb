//! Where outputs come to be: beside their final name, under a temporary one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::Error;

/// A file under a temporary name in its target's folder. Dropped without [`PendingFile::commit`], it is
/// gone.
pub(crate) struct PendingFile {
    file: NamedTempFile,
    target: PathBuf,
}

impl PendingFile {
    /// Creates the temporary file, which is also the test whether the folder can be written.
    pub fn create(target: &Path) -> Result<Self, Error> {
        if target.is_dir() {
            return Err(place(target, "it is a folder".into()));
        }
        let file = temporary(target, 0o666)?
            .tempfile_in(parent(target))
            .map_err(|e| refused(target, "create a file in the folder of", e))?;
        Ok(Self { file, target: target.to_owned() })
    }

    /// An I/O error as one that names the target.
    pub fn failed(&self, source: io::Error) -> Error {
        refused(&self.target, "write", source)
    }

    /// Gives the file its final name. Its contents are on the disk by then: a full disk that shows only
    /// when buffers are flushed is an error here and not a damaged file.
    pub fn commit(self) -> Result<(), Error> {
        self.file.as_file().sync_all().map_err(|e| refused(&self.target, "write", e))?;
        self.file
            .persist(&self.target)
            .map_err(|e| refused(&self.target, "rename the finished file to", e.error))?;
        Ok(())
    }
}

impl io::Write for PendingFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl io::Seek for PendingFile {
    fn seek(&mut self, pos: io::SeekFrom) -> io::Result<u64> {
        self.file.as_file_mut().seek(pos)
    }
}

/// Files that appear in a folder together, or not at all. The folder may exist already; other files in
/// it stay.
pub(crate) struct PendingFolder {
    work: TempDir,
    target: PathBuf,
    existed: bool,
    names: Vec<String>,
}

impl PendingFolder {
    /// Creates a temporary folder: inside the target where that exists, else beside it.
    pub fn create(target: &Path) -> Result<Self, Error> {
        let existed = target.is_dir();
        if !existed && fs::symlink_metadata(target).is_ok() {
            return Err(place(target, "it is a file, expected a folder".into()));
        }
        let home = if existed { target } else { parent(target) };
        let work = temporary(target, 0o777)?
            .tempdir_in(home)
            .map_err(|e| refused(target, if existed { "create files in" } else { "create the folder" }, e))?;
        Ok(Self { work, target: target.to_owned(), existed, names: Vec::new() })
    }

    /// Starts a file of the folder.
    pub fn file(&mut self, name: String) -> Result<File, Error> {
        let file = File::create_new(self.work.path().join(&name)).map_err(|e| self.failed(&name, e))?;
        self.names.push(name);
        Ok(file)
    }

    /// An I/O error as one that names a file of the folder.
    pub fn failed(&self, name: &str, source: io::Error) -> Error {
        refused(&self.target.join(name), "write", source)
    }

    /// Gives everything its final name.
    pub fn commit(self) -> Result<(), Error> {
        if !self.existed {
            // From here on the folder is the user's: keep() stops the clean-up.
            let path = self.work.path().to_owned();
            fs::rename(&path, &self.target)
                .map_err(|e| refused(&self.target, "rename the finished folder to", e))?;
            let _ = self.work.keep();
            return Ok(());
        }
        for name in &self.names {
            let to = self.target.join(name);
            fs::rename(self.work.path().join(name), &to)
                .map_err(|e| refused(&to, "rename a finished file to", e))?;
        }
        Ok(())
    }
}

/// A hidden name next to the target that says whose it is, with the permissions of an ordinary file or
/// folder, less the umask (temporary files are private otherwise, and would stay so after the rename).
fn temporary(target: &Path, mode: u32) -> Result<Builder<'static, 'static>, Error> {
    let folder = parent(target);
    if !folder.is_dir() {
        return Err(place(
            target,
            format!("the folder `{}` does not exist: create it first", folder.display()),
        ));
    }
    let mut builder = Builder::new();
    builder.prefix(".turbo-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    Ok(builder)
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn place(path: &Path, reason: String) -> Error {
    Error::OutputPlace { path: path.to_owned(), reason }
}

fn refused(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), action, source }
}
