//! The engine file: the entries that its manifest lists lie inside it, and none overlap.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(parsed) = turbo_engine_file::parse(bytes) else { return };
    let mut ranges = vec![];
    for entry in &parsed.manifest().entries {
        let range = parsed.range(&entry.path).expect("every listed entry is there");
        assert_eq!(range.len() as u64, entry.bytes);
        assert_eq!(range.start as u64 % turbo_engine_file::ALIGNMENT, 0);
        ranges.push(range);
    }
    ranges.sort_by_key(|range| (range.start, range.end));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(ranges.last().is_none_or(|range| range.end <= bytes.len()));
    drop(parsed.check(bytes));
});
