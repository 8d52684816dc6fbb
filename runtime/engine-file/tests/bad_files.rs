//! Every kind of bad file has an error of its own.

mod common;

use common::*;
use serde_json::json;
use turbo_engine_file::{EngineFile, Error, parse};

/// The error for these bytes as a user sees it, without the path.
fn error(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    match EngineFile::open(&path) {
        Err(Error::InFile { path: found, problem }) => {
            assert_eq!(found, path);
            problem.to_string()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn empty_and_foreign_files() {
    assert!(error(b"").contains("empty (0 bytes)"));
    let text = error(b"\x02\0\0\0\0\0\0\0{}");
    assert_eq!(
        text,
        "this is a safetensors checkpoint, not an engine file; \
         an engine file is what `turbo-compile MODEL -o engine.plan` writes"
    );
    assert!(error(b"\x7fELF").contains("an ELF program or library, not an engine file"));
    assert!(error(b"PK\x05\x06").contains("an empty ZIP archive, not an engine file"));

    let entry = |name: &str| (name.to_string(), b"x".to_vec());
    let text = error(&zip(&[entry("archive/data.pkl"), entry("archive/data/0")], 64, false));
    assert!(text.contains("a PyTorch checkpoint, not an engine file"), "{text}");
    let text = error(&zip(&[entry("[Content_Types].xml")], 1, false));
    assert!(text.contains("a ZIP archive without manifest.json, not an engine file"), "{text}");
}

#[test]
fn a_file_that_ends_early_says_in_which_part() {
    let bytes = valid();
    let (directory, weights) = headers(&bytes, WEIGHTS);
    let data = data_at(&bytes, WEIGHTS);
    let first = headers(&bytes, GRAPHS[0]).0;
    for (len, part) in [
        (3, "not an engine file"),
        (4, "inside the header of an entry"),
        (100, "inside the header of an entry"),
        (4096, "inside entry `graphs/text_encoder.onnx`, which needs at least 4168 bytes"),
        (weights + 20, "inside the header of an entry"),
        (data + 10, "inside entry `weights/dit.safetensors`, which needs at least"),
        (first, "inside the list of entries at its end"),
        (directory + 3, "inside the list of entries at its end"),
        (bytes.len() - 22, "inside the list of entries at its end"),
        (bytes.len() - 1, "inside the list of entries at its end"),
    ] {
        let text = error(&bytes[..len]);
        assert!(text.contains(part), "{len}: {text}");
    }
    let text = error(&bytes[..data + 10]);
    let needs = data + 5000;
    assert_eq!(
        text,
        format!(
            "the file ends early: it has {} bytes and stops inside entry `weights/dit.safetensors`, \
             which needs at least {needs} bytes; copy or build it again",
            data + 10
        )
    );
    // Every single length is an error, and none a panic.
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn appended_bytes_are_counted() {
    let mut bytes = valid();
    let end = bytes.len();
    bytes.extend([0; 100]);
    let text = error(&bytes);
    assert!(text.contains(&format!("ends at byte {end}, but 100 more bytes follow")), "{text}");
    bytes.extend([0; 1 << 20]); // further away than a comment can be
    assert!(error(&bytes).contains("stops inside"));
}

#[test]
fn a_file_whose_end_was_not_downloaded() {
    let mut bytes = valid();
    let weights = headers(&bytes, WEIGHTS).1;
    bytes[weights..].fill(0);
    assert!(error(&bytes).contains("stops inside or before the list of entries"));
}

#[test]
fn names_that_lead_elsewhere() {
    for (to, why) in [
        ("../../../../etc/dit.onnx", "a `.` or `..` part"),
        ("/tmp/text_encoder34.onnx", "an absolute path"),
        ("graphs\\text_encoder.onnx", "a backslash"),
        ("C:/phs/text_encoder.onnx", "a colon"),
        ("graphs//ext_encoder.onnx", "an empty folder"),
        ("graphs/./xt_encoder.onnx", "a `.` or `..` part"),
        ("graphs/te\u{1b}t_encoder.onnx", "characters other than"),
    ] {
        let mut bytes = valid();
        rename(&mut bytes, GRAPHS[0], to);
        let text = error(&bytes);
        assert!(text.starts_with("entry name `") && text.contains(why), "{to}: {text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn names_that_repeat() {
    for (to, first) in [("graphs/vae.onnx", "graphs/vae.onnx"), ("GRAPHS/VAE.ONNX", "graphs/vae.onnx")] {
        let mut all = contents();
        all.push(("graphs/xxx.onnx".into(), b"second".to_vec()));
        all.push(("manifest.json".into(), b"{}".to_vec()));
        let mut bytes = zip(&all, 4096, false);
        rename(&mut bytes, "graphs/xxx.onnx", to);
        let text = error(&bytes);
        assert_eq!(
            text,
            format!(
                "entries `{first}` and `{to}` have the same name (case does not count), expected each name once"
            )
        );
    }
    // Two manifests: the first may not hide the second, nor the other way round.
    let mut all = contents();
    all.push(("manifest_json".into(), b"{}".to_vec()));
    all.push(("manifest.json".into(), b"{}".to_vec()));
    let mut bytes = zip(&all, 4096, false);
    rename(&mut bytes, "manifest_json", "manifest.json");
    assert!(error(&bytes).contains("`manifest.json` and `manifest.json` have the same name"));
}

/// Changes bytes of the central record and of the local header of the VAE's graph.
fn patched(central: usize, local: usize, value: &[u8]) -> String {
    let mut bytes = valid();
    let (in_central, in_local) = headers(&bytes, GRAPHS[2]);
    bytes[in_central + central..][..value.len()].copy_from_slice(value);
    if local > 0 {
        bytes[in_local + local..][..value.len()].copy_from_slice(value);
    }
    error(&bytes)
}

#[test]
fn compressed_encrypted_and_streamed_entries() {
    let text = patched(10, 8, &[8, 0]);
    assert!(text.starts_with("entry `graphs/vae.onnx` is compressed (ZIP method 8)"), "{text}");
    let text = patched(8, 6, &[1, 0]);
    assert!(text.starts_with("entry `graphs/vae.onnx` is encrypted"), "{text}");
    let text = patched(8, 6, &[8, 0]);
    assert!(text.contains("flags in the directory record of `graphs/vae.onnx` is 0x8, expected 0"), "{text}");
}

#[test]
fn headers_that_disagree() {
    let text = patched(16, 0, &[1, 2, 3, 4]);
    assert!(
        text.contains("CRC-32 in the local header of `graphs/vae.onnx`")
            && text.contains("expected 0x4030201")
    );
    let text = patched(20, 0, &[9, 0, 0, 0]);
    assert!(
        text.contains("compressed size in the directory record of `graphs/vae.onnx` is 9, expected 45"),
        "{text}"
    );
    let mut bytes = valid();
    let local = headers(&bytes, GRAPHS[2]).1;
    bytes[local + 30] = b'X';
    let text = error(&bytes);
    assert!(text.contains("name in the local header") && text.contains("is `Xraphs/vae.onnx`"), "{text}");
    let mut bytes = valid();
    bytes[local + 22] = 44;
    let text = error(&bytes);
    assert!(text.contains("size in the local header of `graphs/vae.onnx` is 44, expected 45"), "{text}");
}

#[test]
fn entries_that_overlap_or_leave_gaps() {
    // The VAE's record points to the entry before it, whose header then has another name; offsets tell first.
    let bytes = valid();
    let before = headers(&bytes, GRAPHS[1]).1 as u32;
    let text = patched(42, 0, &before.to_le_bytes());
    assert!(text.contains("starts at byte") && text.contains("inside entry `graphs/"), "{text}");
    // A longer entry reaches into the next one.
    let mut bytes = valid();
    let (central, local) = headers(&bytes, GRAPHS[2]);
    for at in [central + 20, central + 24, local + 18, local + 22] {
        bytes[at..at + 4].copy_from_slice(&5000u32.to_le_bytes());
    }
    let text = error(&bytes);
    assert!(
        text.starts_with("entry `tokenizer.json` starts at byte")
            && text.contains("inside entry `graphs/vae.onnx`")
    );
    // A shorter one leaves bytes that belong to nobody.
    for at in [central + 20, central + 24, local + 18, local + 22] {
        bytes[at..at + 4].copy_from_slice(&40u32.to_le_bytes());
    }
    let text = error(&bytes);
    assert!(text.starts_with("5 bytes at byte ") && text.contains("belong to no entry"), "{text}");
    // The last one reaches into the directory.
    let mut bytes = valid();
    let (central, local) = headers(&bytes, "manifest.json");
    for at in [central + 20, central + 24, local + 18, local + 22] {
        let size = u32_at(&bytes, at) as u32 + 10;
        bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
    }
    let text = error(&bytes);
    assert!(text.starts_with("the list of entries starts at byte"), "{text}");
    assert!(text.contains("inside entry `manifest.json`"), "{text}");
}

#[test]
fn sizes_and_counts_beyond_the_file() {
    let text = patched(24, 0, &[0xfe; 4]);
    assert!(text.contains("expected 4278124286") || text.contains("is 45"), "{text}");
    let mut bytes = valid();
    let (central, local) = headers(&bytes, GRAPHS[2]);
    for at in [central + 20, central + 24, local + 18, local + 22] {
        bytes[at..at + 4].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    }
    let text = error(&bytes);
    assert!(
        text.contains("size in the local header of `graphs/vae.onnx` is 4294967280, expected at most"),
        "{text}"
    );

    let end = bytes.len() - 22;
    let mut bytes = valid();
    bytes[end + 8..end + 12].copy_from_slice(&[0xfe, 0xff, 0xfe, 0xff]);
    assert_eq!(error(&bytes), "the file lists 65534 entries, expected at most 1024");
    // ZIP64 counts, sizes and offsets at the limits of their types.
    for (at, what) in
        [(24, "entry count"), (32, "entry count"), (40, "end of the directory"), (48, "end of the directory")]
    {
        let mut bytes = with_zip64_end(&valid());
        let end64 = bytes.len() - 22 - 20 - 56;
        bytes[end64 + at..][..8].fill(0xff);
        let text = error(&bytes);
        assert!(text.contains(what), "{at}: {text}");
    }
    let mut bytes = with_zip64_end(&valid());
    let end64 = bytes.len() - 22 - 20 - 56;
    bytes[end64 + 24..][..16].fill(0xff);
    assert_eq!(error(&bytes), format!("the file lists {} entries, expected at most 1024", u64::MAX));
}

#[test]
fn zip64_records_that_are_missing_or_left_over() {
    let mut bytes = valid();
    let end = bytes.len() - 22;
    bytes[end + 16..end + 20].fill(0xff);
    assert!(error(&bytes).contains("signature in the ZIP64 end record"));
    let text = patched(42, 0, &[0xff; 4]);
    assert!(text.contains("the ZIP64 offset is 0 bytes, expected 8 bytes"), "{text}");

    let mut all = contents();
    all.push(("manifest.json".into(), b"{}".to_vec()));
    let large = zip(&all, 4096, true);
    let (central, _) = headers(&large, GRAPHS[2]);
    let mut bytes = large.clone();
    bytes[central + 24..central + 28].copy_from_slice(&45u32.to_le_bytes());
    let text = error(&bytes);
    assert!(text.contains("a ZIP64 extra field is 8 more bytes"), "{text}");
    let mut bytes = large;
    let extra = central + 46 + GRAPHS[2].len();
    bytes[extra + 2] = 200;
    assert!(error(&bytes).contains("an extra field's length is 200, expected at most"));
}

#[test]
fn repacked_files_are_not_aligned() {
    let mut all = contents();
    all.push(("manifest.json".into(), b"{}".to_vec()));
    let text = error(&zip(&all, 64, false));
    assert!(text.contains(
        "the data of entry `graphs/text_encoder.onnx` starts at byte 64, expected a multiple of 4096"
    ));
}

#[test]
fn manifest_and_directory_list_the_same_entries() {
    let mut manifest = manifest();
    manifest.entries = entries(&contents());
    let json = serde_json::to_vec(&manifest).unwrap();
    parse(&with_manifest(&json)).unwrap();

    let mut all = contents();
    all.push(("readme.txt".into(), b"hello".to_vec()));
    all.push(("manifest.json".into(), json.clone()));
    let text = error(&zip(&all, 4096, false));
    assert!(text.starts_with("entry `readme.txt` is in the file but not in its manifest"), "{text}");

    let mut all = contents();
    all.remove(2);
    all.push(("manifest.json".into(), json));
    let text = error(&zip(&all, 4096, false));
    assert!(text.starts_with("entry `graphs/vae.onnx` is in the manifest but not in the file"), "{text}");

    manifest.entries[2].bytes += 1;
    let text = error(&with_manifest(&serde_json::to_vec(&manifest).unwrap()));
    assert!(text.starts_with("entry `graphs/vae.onnx` has 45 bytes, its manifest expects 46"), "{text}");
}

#[test]
fn manifests_of_other_schemas_and_without_sense() {
    let newer = json!({"schema": 3, "created_by": {"name": "turbo-compile", "version": "0.9.0"}});
    assert_eq!(
        error(&with_manifest(newer.to_string().as_bytes())),
        "made by turbo-compile 0.9.0 with manifest schema 3, this build reads schema 2: update turbo-run"
    );
    assert!(error(&with_manifest(b"{\"schema\": 0}")).contains("compile the checkpoint again"));
    assert!(error(&with_manifest(b"")).starts_with("manifest.json, top level: EOF"));
    let huge = vec![b' '; (16 << 20) + 1];
    assert_eq!(error(&with_manifest(&huge)), "manifest.json has 16777217 bytes, expected at most 16777216");
}

#[test]
fn changed_content_is_found() {
    for name in ["manifest.json", GRAPHS[0], "tokenizer.json", WEIGHTS] {
        let mut bytes = valid();
        let data = data_at(&bytes, name);
        bytes[data + 7] ^= 4;
        let text = error(&bytes);
        assert!(text.starts_with(&format!("entry `{name}` is damaged: its CRC-32 is ")), "{text}");
    }
    // Content and CRC-32 exchanged together: only the digest in the manifest tells.
    let mut all = contents();
    let mut manifest = manifest();
    manifest.entries = entries(&all);
    all[4].1[0] ^= 1;
    all.push(("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()));
    let (_folder, path) = file(&zip(&all, 4096, false));
    let engine = EngineFile::open(&path).unwrap();
    let text = engine.verify().unwrap_err().to_string();
    assert!(text.contains("entry `weights/dit.safetensors` is damaged: its SHA-256 is "), "{text}");
    engine.verify_entry(GRAPHS[0], |_| {}).unwrap();
}
