//! What is written can be read, by this crate and by others.

mod common;

use std::io::{Cursor, Read};
use std::path::Path;
use std::process::Command;

use common::*;
use proptest::prelude::*;
use turbo_engine_file::{ALIGNMENT, EngineFile, MAX_ENTRIES, Source, Writer, parse};

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    write(&path, &contents());
    assert_eq!(listing(folder.path()), ["engine.plan"]);

    let file = EngineFile::open(&path).unwrap();
    let mut expected = manifest();
    expected.entries = entries(&contents());
    assert_eq!(*file.manifest(), expected);
    assert_eq!(file.size(), std::fs::metadata(&path).unwrap().len());
    assert_eq!(file.path(), path);
    for (name, content) in contents() {
        let bytes = file.bytes(&name).unwrap();
        assert!(bytes == content, "{name}");
        assert_eq!(bytes.as_ptr() as usize % ALIGNMENT as usize, 0, "{name}");
    }
    file.verify().unwrap();
    let mut done = 0;
    file.verify_entry(WEIGHTS, |bytes| done += bytes).unwrap();
    assert_eq!(done, 5000);
    let text = file.bytes("weights/vae.safetensors").unwrap_err().to_string();
    assert!(text.ends_with("engine.plan: the engine file has no entry `weights/vae.safetensors`"), "{text}");
}

#[test]
fn the_same_input_makes_the_same_bytes() {
    assert!(valid() == valid());
}

#[test]
fn an_existing_file_is_replaced() {
    let (folder, path) = file(b"something else");
    write(&path, &contents());
    EngineFile::open(&path).unwrap();
    assert_eq!(listing(folder.path()), ["engine.plan"]);
}

#[cfg(unix)]
#[test]
fn the_file_has_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = file(b"");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    let engine = folder.path().join("other.plan");
    write(&engine, &contents());
    assert_eq!(mode(&engine), mode(&path));
}

#[test]
fn the_most_entries_fit_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    let mut many = contents();
    many.extend((many.len() as u64..MAX_ENTRIES - 1).map(|i| (format!("extra/{i}"), vec![i as u8])));
    write(&path, &many);
    assert_eq!(EngineFile::open(&path).unwrap().bytes("extra/700").unwrap(), [700u32 as u8]);

    many.push(("one.more".into(), vec![]));
    let mut writer = Writer::create(&path).unwrap();
    let result = many.iter().try_for_each(|(name, bytes)| writer.add(name, bytes));
    assert_eq!(result.unwrap_err().to_string(), "the file lists 1025 entries, expected at most 1024");
}

#[test]
fn a_source_is_named_and_hashed() {
    let (_folder, path) = file(b"abc");
    let source = Source::of_file(&path).unwrap();
    assert_eq!((source.name.as_str(), source.bytes), ("engine.plan", 3));
    assert_eq!(source.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let text = Source::of_file(Path::new("no/such.pth")).unwrap_err().to_string();
    assert!(text.starts_with("cannot read no/such.pth: "), "{text}");
}

/// The reader understands what another ZIP writer makes of the same layout.
#[test]
fn reads_what_the_zip_crate_writes() {
    let mut manifest = manifest();
    manifest.entries = entries(&contents());
    let json = serde_json::to_vec(&manifest).unwrap();
    for large in [false, true] {
        // In any order: the manifest may come first.
        let mut all = vec![("manifest.json".to_string(), json.clone())];
        all.extend(contents());
        let bytes = zip(&all, 4096, large);
        let parsed = parse(&bytes).unwrap();
        assert_eq!(*parsed.manifest(), manifest, "large {large}");
        parsed.check(&bytes).unwrap();
        assert!(bytes[parsed.range(WEIGHTS).unwrap()] == contents()[4].1);
    }
}

#[test]
fn zip64_end_records_are_read() {
    let plain = valid();
    let bytes = with_zip64_end(&plain);
    assert_eq!(parse(&bytes).unwrap(), parse(&plain).unwrap());
}

/// Other ZIP readers agree about names, contents and checksums.
#[test]
fn the_zip_crate_and_python_read_it() {
    for bytes in [valid(), with_zip64_end(&valid())] {
        let mut archive = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
        for (name, content) in contents() {
            let mut entry = archive.by_name(&name).unwrap();
            assert_eq!(entry.data_start().unwrap() % ALIGNMENT, 0, "{name}");
            let mut found = Vec::new();
            entry.read_to_end(&mut found).unwrap(); // checks the CRC-32
            assert!(found == content, "{name}");
        }
        assert_eq!(archive.len(), contents().len() + 1);

        let (_folder, path) = file(&bytes);
        let script = "import json, sys, zipfile\n\
            z = zipfile.ZipFile(sys.argv[1])\n\
            assert z.testzip() is None\n\
            assert all(i.compress_type == zipfile.ZIP_STORED for i in z.infolist())\n\
            m = json.loads(z.read('manifest.json'))\n\
            assert [[e['path'], e['bytes']] for e in m['entries']] == [[i.filename, i.file_size] for i in z.infolist()[:-1]]\n\
            print(len(z.infolist()))";
        let Ok(out) = Command::new("python3").arg("-c").arg(script).arg(&path).output() else {
            eprintln!("python3 is not here: its zipfile module was not asked");
            continue;
        };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "6");
    }
}

fn any_entries() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    // Sizes around the alignment are the interesting ones.
    let size = prop_oneof![0..40usize, 3900..4200usize, 8100..8300usize];
    let entry = ("[a-z0-9_-]{1,12}(/[a-zA-Z0-9._-]{0,60}[a-z]){0,2}", size, any::<u8>());
    prop::collection::vec(entry, 0..12).prop_map(|list| {
        let mut seen = std::collections::BTreeSet::new();
        let fresh = list.into_iter().filter(|(name, ..)| seen.insert(name.to_ascii_lowercase()));
        let mut all = contents();
        all.extend(
            fresh.map(|(name, size, seed)| (name, (0..size).map(|i| (i as u8).wrapping_mul(seed)).collect())),
        );
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_entries_come_back_aligned(all in any_entries(), chunk in 1..5000usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.plan");
        let mut writer = Writer::create(&path).unwrap();
        for (name, bytes) in &all {
            let mut parts = bytes.chunks(chunk);
            writer
                .add_stream(name, bytes.len() as u64, |out| parts.try_for_each(|part| out.write_all(part)))
                .unwrap();
        }
        writer.finish(manifest()).unwrap();
        let file = EngineFile::open(&path).unwrap();
        file.verify().unwrap();
        prop_assert_eq!(&file.manifest().entries, &entries(&all));
        for (name, bytes) in &all {
            prop_assert!(file.bytes(name).unwrap() == bytes);
            prop_assert_eq!(file.range(name).unwrap().start % ALIGNMENT as usize, 0);
        }
        let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        for (name, bytes) in &all {
            let mut found = Vec::new();
            archive.by_name(name).unwrap().read_to_end(&mut found).unwrap();
            prop_assert!(&found == bytes);
        }
    }
}
