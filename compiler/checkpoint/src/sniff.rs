//! What a file is, by its content.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::map::MappedFile;
use crate::{Error, safetensors, torch};

/// Longest JSON file that is looked at, in bytes; the index of a thousand tensors has about 0.1 MB.
const MAX_INDEX_LEN: u64 = 64 << 20;

/// Format of a checkpoint file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A safetensors file.
    Safetensors,
    /// A JSON file that lists the shards of a checkpoint.
    SafetensorsIndex,
    /// What `torch.save` writes since version 1.6.
    TorchZip,
    /// What `torch.save` wrote before; recognised so that opening it can say what to do.
    TorchLegacy,
}

/// Finds out which format a file has, from its content alone. A file that is damaged but recognisable has a
/// format too: opening it then says what is wrong.
///
/// # Errors
/// [`Error::Io`] and [`Error::NotAFile`].
pub fn sniff(path: &Path) -> Result<Option<Format>, Error> {
    let head = Head::read(path)?;
    if head.bytes.starts_with(b"PK") {
        let map = MappedFile::open(path)?;
        return Ok(torch::is_torch_zip(map.bytes()).then_some(Format::TorchZip));
    }
    if head.bytes.starts_with(&torch::LEGACY_MAGIC) {
        return Ok(Some(Format::TorchLegacy));
    }
    if head.is_safetensors() {
        return Ok(Some(Format::Safetensors));
    }
    if head.bytes.trim_ascii_start().starts_with(b"{") && head.len <= MAX_INDEX_LEN {
        let map = MappedFile::open(path)?;
        return Ok(is_index(map.bytes()).then_some(Format::SafetensorsIndex));
    }
    Ok(None)
}

/// What a file of no known format looks like, in words for an error.
pub(crate) fn describe(path: &Path) -> Result<String, Error> {
    let head = Head::read(path)?;
    let known: [(&[u8], &str); 6] = [
        (b"GGUF", "a GGUF file; hint: convert it to safetensors"),
        (b"\x89HDF", "an HDF5 file"),
        (b"PK", "a ZIP file without data.pkl"),
        (b"\x80", "a bare pickle; hint: re-save it with torch.save or as safetensors"),
        (b"version https://git-lfs", "a Git LFS pointer; hint: run git lfs pull"),
        (b"<", "a web page or XML; hint: the download may have failed"),
    ];
    Ok(match known.iter().find(|(magic, _)| head.bytes.starts_with(magic)) {
        _ if head.len == 0 => "an empty file".to_owned(),
        Some((_, what)) => (*what).to_owned(),
        None => format!("{} bytes that begin with {:02x?}", head.len, &head.bytes[..head.bytes.len().min(8)]),
    })
}

struct Head {
    bytes: Vec<u8>,
    len: u64,
}

impl Head {
    fn read(path: &Path) -> Result<Head, Error> {
        let io = |cause| Error::Io { path: path.to_owned(), cause };
        // Before opening: a pipe would block.
        let kind = std::fs::metadata(path).map_err(io)?;
        if !kind.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(64).read_to_end(&mut bytes)).map_err(io)?;
        Ok(Head { bytes, len: kind.len() })
    }

    /// A brace behind an eight-byte length. JSON text can have a brace there too, but its first eight bytes
    /// are printable, which as a length would be more than 2 * 10^18.
    fn is_safetensors(&self) -> bool {
        match self.bytes.split_first_chunk::<8>() {
            Some((len, [b'{', ..])) => !len.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()),
            // Cut off in the middle of the header's first byte: only a plausible length speaks for it.
            Some((len, [])) => (1..=safetensors::MAX_HEADER_LEN).contains(&u64::from_le_bytes(*len)),
            _ => false,
        }
    }
}

/// Whether JSON text has a `weight_map` at its top. Text that is not valid JSON but has the word in it
/// counts: it is a damaged index.
fn is_index(json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Top {
        weight_map: Option<IgnoredAny>,
    }
    let word = b"\"weight_map\"";
    json.windows(word.len()).any(|window| window == word)
        && serde_json::from_slice::<Top>(json).map_or(true, |top| top.weight_map.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniff_bytes(bytes: &[u8]) -> Option<Format> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        sniff(file.path()).unwrap()
    }

    #[test]
    fn content_decides() {
        assert_eq!(sniff_bytes(b"\x02\0\0\0\0\0\0\0{}"), Some(Format::Safetensors));
        assert_eq!(sniff_bytes(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), Some(Format::Safetensors));
        assert_eq!(sniff_bytes(b"\x40\0\0\0\0\0\0\0"), Some(Format::Safetensors));
        assert_eq!(sniff_bytes(b" {\"weight_map\": {\"a\": \"b\"}}"), Some(Format::SafetensorsIndex));
        assert_eq!(sniff_bytes(b"{\"weight_map\": {\"a\": "), Some(Format::SafetensorsIndex));
        assert_eq!(sniff_bytes(&torch::LEGACY_MAGIC), Some(Format::TorchLegacy));
        for other in [
            &b""[..],
            b"{}",
            b"{\"abcd\":{\"weight\": 1}}",
            b"{\"x\": [\"weight_map\", {\"weight_map\": 1}]}",
            b"GGUF\x03\0\0\0\x01\0\0\0",
            b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"hello, {world}",
        ] {
            assert_eq!(sniff_bytes(other), None, "{:?}", String::from_utf8_lossy(other));
        }
    }
}
