//! The engine file: one ZIP with a manifest, made by `turbo-compile` and run by `turbo-run`.
//!
//! # Layout
//!
//! A ZIP whose entries are stored, never compressed, with the data of each at a multiple of [`ALIGNMENT`]
//! bytes, so that a mapping of the file gives every entry as an aligned slice. Every ordinary ZIP tool can
//! list and extract it; files and entries beyond 4 GiB use ZIP64.
//!
//! | entry | content |
//! |---|---|
//! | `<stage>.onnx`, `<stage>-<size>.onnx` | the ONNX graph of each stage, weights outside |
//! | `tokenizer.json` | the tokenizer |
//! | `weights/<network>.safetensors` | the weights of each network, once |
//! | `manifest.json` | [`Manifest`]: what the file is and needs; its JSON schema is `manifest.schema.json` |
//!
//! The manifest is the *last* entry: it holds the digests of all others, and these are streamed into place, so
//! their digests are known last. A reader finds it through the directory that follows it. The names above are
//! turbo-compile's habit; only `manifest.json` and the folder [`WEIGHTS_FOLDER`] mean something to this crate.
//!
//! # What is checked when
//!
//! [`parse`] accepts nothing but this layout: entries follow one another without gaps or overlaps, local and
//! central headers agree, names are clean and unique, the manifest's CRC-32 holds, its fields are in range, and
//! manifest and directory list the same entries with the same sizes.
//!
//! [`EngineFile::open`] also checks the CRC-32 of every entry in files of at most [`CHECK_ALL_UP_TO`] bytes; in
//! larger files, of every entry outside [`WEIGHTS_FOLDER`]. So opening costs milliseconds at any size, and a
//! flipped bit in a small file is always found. [`EngineFile::verify`] checks every SHA-256.
//!
//! Reading and writing are this crate's own code rather than a ZIP library's: a library reads any ZIP, keeps one
//! of two entries of the same name, and trusts the central directory alone. The tests hold the result against
//! two independent implementations.

mod check;
mod directory;
mod error;
mod file;
mod layout;
pub mod machine;
mod manifest;
mod name;
mod sniff;
mod writer;

pub use check::parse_manifest;
pub use error::{Error, Result};
pub use file::{CHECK_ALL_UP_TO, EngineFile, Parsed, parse};
pub use manifest::*;
pub use writer::Writer;

/// Name of the manifest's entry.
pub const MANIFEST: &str = "manifest.json";

/// The manifest schema that this build writes and reads.
pub const SCHEMA: u32 = 2;

/// The data of every entry starts at a multiple of this many bytes: the page size of the common systems.
pub const ALIGNMENT: u64 = 4096;

/// Entries under this folder are weights: in large files they are left to [`EngineFile::verify`].
pub const WEIGHTS_FOLDER: &str = "weights/";

/// Most entries that an engine file can have.
pub const MAX_ENTRIES: u64 = 1024;

/// Most bytes that a manifest can have.
pub const MAX_MANIFEST: u64 = 16 << 20;
