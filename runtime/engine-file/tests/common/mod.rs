//! A small engine file and the tools to make broken ones of it.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses its own part

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use turbo_engine_file::{Entry, Manifest, Writer, parse_manifest};

pub const GRAPHS: [&str; 3] = ["graphs/text_encoder.onnx", "graphs/dit_high.onnx", "graphs/vae.onnx"];
pub const WEIGHTS: &str = "weights/dit.safetensors";

/// A manifest that fits the entries of [`contents`].
pub fn manifest() -> Manifest {
    parse_manifest(include_bytes!("../sample.json")).unwrap()
}

/// Entry names and contents of the small engine file.
pub fn contents() -> Vec<(String, Vec<u8>)> {
    let mut contents: Vec<(String, Vec<u8>)> =
        GRAPHS.iter().map(|name| (name.to_string(), name.repeat(3).into_bytes())).collect();
    contents.push(("tokenizer.json".into(), b"{\"tokens\": [1, 2]}".to_vec()));
    contents.push((WEIGHTS.into(), (0..5000u32).map(|i| ((i * 31) >> 3) as u8).collect()));
    contents
}

/// Writes an engine file with these entries.
pub fn write(path: &Path, contents: &[(String, Vec<u8>)]) {
    let mut writer = Writer::create(path).unwrap();
    for (name, bytes) in contents {
        writer.add(name, bytes).unwrap();
    }
    writer.finish(manifest()).unwrap();
}

/// The small engine file's bytes.
pub fn valid() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    write(&path, &contents());
    std::fs::read(path).unwrap()
}

/// Puts `bytes` into a file of a fresh folder.
pub fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Names of what is in the folder.
pub fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What the manifest says about these contents.
pub fn entries(contents: &[(String, Vec<u8>)]) -> Vec<Entry> {
    contents
        .iter()
        .map(|(name, bytes)| Entry {
            path: name.clone(),
            bytes: bytes.len() as u64,
            sha256: Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect(),
        })
        .collect()
}

/// A ZIP made by the `zip` crate, stored and aligned, with ZIP64 fields everywhere if `large`.
pub fn zip(contents: &[(String, Vec<u8>)], align: u16, large: bool) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(large)
        .with_alignment(align);
    for (name, bytes) in contents {
        zip.start_file(name.as_str(), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The small engine file with this manifest text instead of its own.
pub fn with_manifest(json: &[u8]) -> Vec<u8> {
    let mut all = contents();
    all.push(("manifest.json".into(), json.to_vec()));
    zip(&all, 4096, false)
}

pub fn u16_at(bytes: &[u8], at: usize) -> usize {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
}

pub fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Offsets of the central record and the local header of an entry of a small file.
pub fn headers(bytes: &[u8], name: &str) -> (usize, usize) {
    let mut at = u32_at(bytes, bytes.len() - 22 + 16);
    loop {
        assert_eq!(&bytes[at..at + 4], b"PK\x01\x02", "no entry {name}");
        let len = u16_at(bytes, at + 28);
        if &bytes[at + 46..at + 46 + len] == name.as_bytes() {
            return (at, u32_at(bytes, at + 42));
        }
        at += 46 + len + u16_at(bytes, at + 30);
    }
}

/// Offset of the data of an entry of a small file.
pub fn data_at(bytes: &[u8], name: &str) -> usize {
    let local = headers(bytes, name).1;
    local + 30 + u16_at(bytes, local + 26) + u16_at(bytes, local + 28)
}

/// Gives an entry another name of the same length, in both headers.
pub fn rename(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let (central, local) = headers(bytes, from);
    bytes[central + 46..][..to.len()].copy_from_slice(to.as_bytes());
    bytes[local + 30..][..to.len()].copy_from_slice(to.as_bytes());
}

/// The file with ZIP64 end records, which a file of more than 4 GiB has.
pub fn with_zip64_end(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.len() - 22;
    let (count, size, offset) = (u16_at(bytes, end + 10), u32_at(bytes, end + 12), u32_at(bytes, end + 16));
    let mut out = bytes[..end].to_vec();
    out.extend(b"PK\x06\x06");
    out.extend(44u64.to_le_bytes());
    out.extend([45, 3, 45, 0]);
    out.extend([0; 8]);
    for number in [count, count, size, offset] {
        out.extend((number as u64).to_le_bytes());
    }
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend((end as u64).to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([0xff; 12]);
    out.extend([0; 2]);
    out
}
