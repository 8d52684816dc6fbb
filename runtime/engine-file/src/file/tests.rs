//! Files too large to be written in a test: the weights are a hole.
#![cfg(target_pointer_width = "64")] // others cannot map them

use std::io::{Seek, SeekFrom, Write};

use super::*;
use crate::layout::{self, Header};
use crate::{ALIGNMENT, Entry, MANIFEST};

const GIB: u64 = 1 << 30;
const WEIGHTS: &str = "weights/dit.safetensors";
const GRAPH: &str = "graphs/vae.onnx";

/// A sparse engine file whose first entry is `weights` zeros; the other entries lie behind it.
fn sparse(path: &Path, weights: u64, weights_sha256: &str) {
    let mut manifest = parse_manifest(include_bytes!("../../tests/sample.json")).unwrap();
    for entry in &mut manifest.entries {
        let content = entry.path.as_bytes();
        *entry = Entry {
            path: entry.path.clone(),
            bytes: content.len() as u64,
            sha256: hex(&Sha256::digest(content)),
        };
    }
    manifest.entries.rotate_right(1);
    manifest.entries[0].bytes = weights;
    manifest.entries[0].sha256 = weights_sha256.into();
    assert_eq!(manifest.entries[0].path, WEIGHTS);
    let json = serde_json::to_vec(&manifest).unwrap();

    let mut file = File::create(path).unwrap();
    let (mut offset, mut directory) = (0, Vec::new());
    let mut add = |name: &str, content: &[u8], bytes: u64| {
        let header = Header { name, crc: crc32fast::hash(content), bytes, offset };
        file.write_all(&layout::local(&header)).unwrap();
        assert_eq!(file.stream_position().unwrap() % ALIGNMENT, 0);
        file.write_all(content).unwrap();
        offset = file.seek(SeekFrom::Current((bytes - content.len() as u64) as i64)).unwrap();
        directory.extend(layout::central(&header));
    };
    for entry in &manifest.entries {
        let content = if entry.path == WEIGHTS { &[] } else { entry.path.as_bytes() };
        add(&entry.path, content, entry.bytes);
    }
    add(MANIFEST, &json, json.len() as u64);
    file.write_all(&directory).unwrap();
    file.write_all(&layout::end(6, offset, directory.len() as u64)).unwrap();
}

/// Flips a bit of the file.
fn flip(path: &Path, at: u64) {
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    io::Read::read_exact(&mut file, &mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[test]
fn files_beyond_4_gib_use_zip64() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    // Just below, at, and above the largest 32-bit size; the offsets behind it cross the limit as well.
    for weights in [(4 * GIB) - 8192, (4 * GIB) - 2, (4 * GIB) - 1, 4 * GIB, 5 * GIB + 123] {
        sparse(&path, weights, &"0".repeat(64));
        let file = EngineFile::open(&path).unwrap();
        assert_eq!(file.range(WEIGHTS).unwrap().len() as u64, weights);
        for entry in &file.manifest().entries[1..] {
            let range = file.range(&entry.path).unwrap();
            assert!(range.start as u64 > weights && range.start.is_multiple_of(4096));
            assert_eq!(file.bytes(&entry.path).unwrap(), entry.path.as_bytes());
        }
        let weights_end = &file.bytes(WEIGHTS).unwrap()[(weights - 8) as usize..];
        assert_eq!(weights_end, [0; 8]);

        // Another reader agrees about places and sizes.
        let mut archive = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(archive.len(), 6);
        for entry in &file.manifest().entries {
            let found = archive.by_name(&entry.path).unwrap();
            assert_eq!(found.size(), entry.bytes, "{}", entry.path);
            assert_eq!(found.data_start(), Some(file.range(&entry.path).unwrap().start as u64));
        }
    }
}

#[test]
fn weights_of_large_files_are_left_to_verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    let mut hash = Sha256::new();
    (0..257).for_each(|_| hash.update(vec![0; 1 << 20]));
    sparse(&path, 257 << 20, &hex(&hash.finalize()));
    let file = EngineFile::open(&path).unwrap();
    file.verify().unwrap();
    let (weights, graph) = (file.range(WEIGHTS).unwrap(), file.range(GRAPH).unwrap());
    drop(file);

    let at = weights.start as u64 + (100 << 20);
    flip(&path, at);
    let file = EngineFile::open(&path).unwrap();
    let text = file.verify().unwrap_err().to_string();
    assert!(text.contains("entry `weights/dit.safetensors` is damaged: its SHA-256 is "), "{text}");
    file.verify_entry(GRAPH, |_| {}).unwrap();
    drop(file);
    flip(&path, at);

    flip(&path, graph.start as u64);
    let text = EngineFile::open(&path).unwrap_err().to_string();
    assert!(text.contains("entry `graphs/vae.onnx` is damaged: its CRC-32 is "), "{text}");
}

#[test]
fn other_bytes_than_the_parsed_ones_are_an_error_and_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    sparse(&path, 0, &hex(&Sha256::digest([])));
    let bytes = std::fs::read(&path).unwrap();
    let parsed = parse(&bytes).unwrap();
    parsed.check(&bytes).unwrap();
    let text = parsed.check(&bytes[..5000]).unwrap_err().to_string();
    assert!(text.contains("it has 5000 bytes and stops inside entry `"), "{text}");
}
