//! The manifest of an engine file: what is accepted can be written and read again, unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use turbo_engine_file::parse_manifest;

fuzz_target!(|json: &[u8]| {
    let Ok(manifest) = parse_manifest(json) else { return };
    let written = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    assert_eq!(parse_manifest(&written).expect("a written manifest is valid"), manifest);
});
