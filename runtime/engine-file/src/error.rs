//! Everything that can be wrong with an engine file, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::SCHEMA;

/// Why an engine file could not be read or written.
///
/// Every message is complete by itself: what, where, expected against found, and a hint. Text that comes out
/// of the file is escaped and clipped before it is put into a message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}{}", path.display(), advice(cause.kind()))]
    Io {
        /// What was tried: "open", "create", "write", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A problem with the content of the file at `path`.
    #[error("{}: {problem}", path.display())]
    InFile {
        /// The engine file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<Error>,
    },

    /// No bytes at all.
    #[error("the file is empty (0 bytes); it was not written or copied to the end: build or copy it again")]
    Empty,
    /// Something else than an engine file.
    #[error(
        "this is {looks_like}, not an engine file; an engine file is what `turbo-compile MODEL -o engine.plan` writes"
    )]
    NotAnEngineFile {
        /// What the bytes look like, with an article.
        looks_like: String,
    },
    /// The file begins as an engine file and stops too early.
    #[error("the file ends early: it has {has} bytes and stops inside {part}{}; copy or build it again", needed(*.needs))]
    Truncated {
        /// The part in which the file ends.
        part: String,
        /// The file's size in bytes.
        has: u64,
        /// The least size that would hold that part, where it is known.
        needs: Option<u64>,
    },
    /// Bytes after the end.
    #[error(
        "the engine file ends at byte {end}, but {extra} more bytes follow; something was appended: copy or build it again"
    )]
    Trailing {
        /// Where the engine file ends.
        end: u64,
        /// How many bytes follow.
        extra: u64,
    },
    /// A field of the ZIP structure has a value that it cannot have.
    #[error(
        "damaged at byte {at}: {what} is {found}, expected {expected}; copy the file again or build it again"
    )]
    Structure {
        /// Which field.
        what: String,
        /// Its byte offset in the file.
        at: u64,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A compressed entry.
    #[error(
        "entry `{entry}` is compressed (ZIP method {method}), expected stored (method 0), because entries are mapped; the file was repacked: use the one that turbo-compile wrote"
    )]
    Compressed {
        /// Path inside the engine file.
        entry: String,
        /// ZIP compression method.
        method: u16,
    },
    /// An encrypted entry.
    #[error(
        "entry `{entry}` is encrypted, expected plain data; the file was repacked: use the one that turbo-compile wrote"
    )]
    Encrypted {
        /// Path inside the engine file.
        entry: String,
    },
    /// Data that does not start at a multiple of [`crate::ALIGNMENT`].
    #[error(
        "the data of entry `{entry}` starts at byte {offset}, expected a multiple of 4096; the file was repacked: use the one that turbo-compile wrote"
    )]
    Misaligned {
        /// Path inside the engine file.
        entry: String,
        /// Where its data starts.
        offset: u64,
    },
    /// Two entries share bytes.
    #[error(
        "{second} starts at byte {at}, inside {first}, which ends at byte {end}; this file was not made by turbo-compile: do not trust it"
    )]
    Overlap {
        /// The part that comes first.
        first: String,
        /// The entry, or the directory, that starts inside it.
        second: String,
        /// Where the second one starts.
        at: u64,
        /// Where the first one ends.
        end: u64,
    },
    /// Bytes that belong to no entry.
    #[error("{bytes} bytes at byte {at} belong to no entry; copy the file again or build it again")]
    Gap {
        /// Where they start.
        at: u64,
        /// How many there are.
        bytes: u64,
    },
    /// An entry name that could reach outside, or that means different things on different systems.
    #[error(
        "entry name `{name}` is not allowed: {why}; this file was not made by turbo-compile: do not trust it"
    )]
    UnsafeName {
        /// The name.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Two entries of one name, or of names that differ in case only.
    #[error(
        "entries `{first}` and `{second}` have the same name (case does not count), expected each name once"
    )]
    Duplicate {
        /// The earlier one.
        first: String,
        /// The later one.
        second: String,
    },
    /// More entries than an engine file can have.
    #[error("the file lists {found} entries, expected at most {max}")]
    TooManyEntries {
        /// How many it lists.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A manifest larger than the limit.
    #[error("manifest.json has {bytes} bytes, expected at most {max}")]
    ManifestTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// An entry of the ZIP that the manifest does not list.
    #[error("entry `{entry}` is in the file but not in its manifest; copy the file again or build it again")]
    NotListed {
        /// Path inside the engine file.
        entry: String,
    },
    /// An entry of the manifest that the ZIP does not have.
    #[error("entry `{entry}` is in the manifest but not in the file; copy the file again or build it again")]
    NotPresent {
        /// Path inside the engine file.
        entry: String,
    },
    /// Manifest and ZIP disagree about an entry's size.
    #[error(
        "entry `{entry}` has {found} bytes, its manifest expects {expected}; copy the file again or build it again"
    )]
    SizeDiffers {
        /// Path inside the engine file.
        entry: String,
        /// Bytes according to the manifest.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// Content that does not have the digest it should have.
    #[error(
        "entry `{entry}` is damaged: its {check} is {found}, expected {expected}; copy the file again or build it again"
    )]
    Damaged {
        /// Path inside the engine file.
        entry: String,
        /// "CRC-32" or "SHA-256".
        check: &'static str,
        /// Digest according to the ZIP directory or the manifest, in hexadecimal.
        expected: String,
        /// Digest of the content, in hexadecimal.
        found: String,
    },
    /// The caller asked for an entry that is not there.
    #[error("the engine file has no entry `{entry}`")]
    NoSuchEntry {
        /// What was asked for.
        entry: String,
    },

    /// The manifest is of a schema that this build does not know yet.
    #[error(
        "made by {made_by} with manifest schema {found}, this build reads schema {SCHEMA}: update turbo-run"
    )]
    NewerSchema {
        /// The schema number found.
        found: u64,
        /// Name and version of the program that made the file.
        made_by: String,
    },
    /// The manifest is of a schema that this build does not read any more.
    #[error(
        "made by {made_by} with manifest schema {found}, this build reads schema {SCHEMA}: compile the checkpoint again with this version's turbo-compile"
    )]
    OlderSchema {
        /// The schema number found.
        found: u64,
        /// Name and version of the program that made the file.
        made_by: String,
    },
    /// The manifest is not JSON, or a field is missing, unknown or of another type.
    #[error("manifest.json, {field}: {message}")]
    ManifestSyntax {
        /// Path of the field, such as `stages[2].inputs[0].dtype`.
        field: String,
        /// What the JSON reader says, with line and column.
        message: String,
    },
    /// A field of the manifest has a value that it cannot have.
    #[error("manifest.json, {field}: expected {expected}, found {found}")]
    Manifest {
        /// Path of the field, such as `stages[2].inputs[0].shape`.
        field: String,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },

    /// An entry was announced with another length than its content has.
    #[error("entry `{entry}` was announced with {expected} bytes, but {} written", at_least(*.found, *.expected))]
    WrongLength {
        /// Path inside the engine file.
        entry: String,
        /// Announced bytes.
        expected: u64,
        /// Bytes written up to the point where it was noticed.
        found: u64,
    },
    /// The content of an entry could not be produced.
    #[error("the content of entry `{entry}` could not be produced: {cause}")]
    Content {
        /// Path inside the engine file.
        entry: String,
        /// What its producer said.
        cause: io::Error,
    },
    /// The writer was used after an error.
    #[error("writing {} was given up after an earlier error", path.display())]
    GivenUp {
        /// The engine file that was to be written.
        path: PathBuf,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, cause: io::Error) -> Error {
        Error::Io { action, path: path.to_path_buf(), cause }
    }

    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error::InFile { path: path.to_path_buf(), problem: Box::new(self) }
    }
}

/// What a user can do about an error of the operating system.
fn advice(kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind::*;
    match kind {
        NotFound => "; check the path and that its folder exists",
        PermissionDenied => "; check the permissions or choose another folder",
        ReadOnlyFilesystem => "; choose a folder that can be written",
        StorageFull | QuotaExceeded => "; free some space or choose a folder on another disk",
        FileTooLarge => "; this disk or a limit of this session does not allow files of that size",
        IsADirectory => "; give the path of a file",
        NotADirectory => "; a part of the path is a file, not a folder",
        _ => "",
    }
}

fn needed(needs: Option<u64>) -> String {
    needs.map(|needs| format!(", which needs at least {needs} bytes")).unwrap_or_default()
}

fn at_least(found: u64, expected: u64) -> String {
    if found > expected { format!("at least {found} were") } else { format!("only {found} were") }
}

/// Text out of a file, fit for a message: control characters escaped, at most 120 characters.
pub(crate) fn clip(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut clipped: String =
        text.chars().take(120).flat_map(|c| escape(c).chars().collect::<Vec<_>>()).collect();
    if text.chars().nth(120).is_some() {
        clipped.push_str("...");
    }
    clipped
}

fn escape(c: char) -> String {
    // `escape_debug` also knows the invisible and direction-changing characters; quotes may stay.
    if matches!(c, '"' | '\'' | '\\') { c.to_string() } else { c.escape_debug().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_cannot_move_the_cursor_or_flood_the_screen() {
        assert_eq!(clip("a\u{1b}[2Jb\n\u{202e}c"), "a\\u{1b}[2Jb\\n\\u{202e}c");
        assert_eq!(clip("x".repeat(121)), format!("{}...", "x".repeat(120)));
        assert_eq!(clip("x".repeat(120)), "x".repeat(120));
    }

    #[test]
    fn operating_system_errors_name_the_path_and_the_way_out() {
        for (kind, hint) in [
            (io::ErrorKind::StorageFull, "free some space"),
            (io::ErrorKind::ReadOnlyFilesystem, "folder that can be written"),
            (io::ErrorKind::PermissionDenied, "check the permissions"),
            (io::ErrorKind::NotFound, "folder exists"),
        ] {
            let text = Error::io("write", Path::new("a/engine.plan"), kind.into()).to_string();
            assert!(text.starts_with("cannot write a/engine.plan: ") && text.contains(hint), "{text}");
        }
    }
}
