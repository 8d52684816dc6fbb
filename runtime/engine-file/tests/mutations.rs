//! No change to an engine file goes unnoticed and matters.

mod common;

use common::*;
use proptest::prelude::*;
use turbo_engine_file::{Attention, Manifest, Parsed, Result, parse, parse_manifest};

fn open(bytes: &[u8]) -> Result<Parsed> {
    let parsed = parse(bytes)?;
    parsed.check(bytes)?;
    Ok(parsed)
}

/// Every bit of the file is flipped once. What is accepted all the same may only be in the fields that mean
/// nothing here: version numbers, dates and file attributes.
#[test]
fn a_flipped_bit_is_found_wherever_it_matters() {
    let valid = valid();
    let parsed = open(&valid).unwrap();
    let mut harmless = std::collections::BTreeSet::new();
    for name in contents().iter().map(|(name, _)| name.as_str()).chain(["manifest.json"]) {
        let (central, local) = headers(&valid, name);
        harmless.extend(local + 4..local + 6); // version needed
        harmless.extend(local + 10..local + 14); // time and date
        harmless.extend(central + 4..central + 8); // made by, version needed
        harmless.extend(central + 12..central + 16); // time and date
        harmless.extend(central + 36..central + 42); // attributes
        // The alignment that the padding repeats.
        let padding = local + 30 + name.len();
        harmless.extend(padding + 4..padding + 6);
    }
    let mut bytes = valid.clone();
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            // In the long runs of zeros, one bit of each byte will do.
            if bit != at % 8 && at > 64 && bytes[at - 16..at + 1] == [0; 17] {
                continue;
            }
            bytes[at] ^= 1 << bit;
            match open(&bytes) {
                Err(_) => assert!(!harmless.contains(&at), "byte {at} matters after all"),
                Ok(found) => {
                    assert!(harmless.contains(&at), "bit {bit} of byte {at} was flipped and not found");
                    assert_eq!(found, parsed);
                    accepted += 1;
                }
            }
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(bytes == valid);
    assert_eq!(accepted, harmless.len() * 8);
}

#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    use any as a;
    let bytes = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..9),
            Just(vec![0xff; 4]),
            Just(vec![0; 2]),
            Just(b"PK\x05\x06".to_vec()),
            Just(b"PK\x01\x02".to_vec()),
        ]
    };
    prop_oneof![
        4 => (a::<prop::sample::Index>(), bytes()).prop_map(|(at, b)| Change::Set(at, b)),
        1 => (a::<prop::sample::Index>(), 1..5000usize).prop_map(|(at, n)| Change::Remove(at, n)),
        1 => (a::<prop::sample::Index>(), bytes()).prop_map(|(at, b)| Change::Insert(at, b)),
        1 => (a::<prop::sample::Index>(), a::<prop::sample::Index>(), 1..200usize)
            .prop_map(|(from, to, n)| Change::Copy(from, to, n)),
        1 => a::<prop::sample::Index>().prop_map(Change::Cut),
    ]
}

/// Applies a change. Half of the time to the records at the end, which are a small part of the file.
fn apply(bytes: &mut Vec<u8>, change: &Change, tail: bool) {
    if bytes.is_empty() {
        return;
    }
    let from = if tail { bytes.len().saturating_sub(700) } else { 0 };
    let len = bytes.len();
    let place = |index: &prop::sample::Index| from + index.index(len - from);
    match change {
        Change::Set(at, new) => {
            let at = place(at);
            let n = new.len().min(len - at);
            bytes[at..at + n].copy_from_slice(&new[..n]);
        }
        Change::Remove(at, n) => drop(bytes.drain(place(at)..(place(at) + n).min(len))),
        Change::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
        Change::Copy(a, b, n) => {
            let (a, b) = (place(a), place(b));
            bytes.copy_within(a..a + n.min(&(len - a.max(b))), b);
        }
        Change::Cut(at) => bytes.truncate(place(at)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_files_are_refused_or_mean_the_same(
        changes in prop::collection::vec((change(), any::<bool>()), 1..6),
        zip64: bool,
    ) {
        thread_local!(static FILES: [Vec<u8>; 2] = { let v = valid(); [with_zip64_end(&v), v] });
        let valid = FILES.with(|files| files[usize::from(!zip64)].clone());
        let mut bytes = valid.clone();
        for (change, tail) in &changes {
            apply(&mut bytes, change, *tail);
        }
        if let Ok(found) = open(&bytes) {
            prop_assert_eq!(found, open(&valid).unwrap());
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool) {
        let mut bytes = bytes;
        if magic {
            bytes.splice(0..0, *b"PK\x03\x04");
        }
        prop_assert!(parse(&bytes).is_err());
        prop_assert!(parse_manifest(&bytes).is_err());
    }

    #[test]
    fn changed_manifests_are_refused_or_consistent(
        changes in prop::collection::vec((change(), any::<bool>()), 1..4),
    ) {
        let mut json = serde_json::to_vec(&manifest()).unwrap();
        for (change, _) in &changes {
            apply(&mut json, change, false);
        }
        if let Ok(found) = parse_manifest(&json) {
            found.check().unwrap();
            let again = serde_json::to_vec(&found).unwrap();
            prop_assert_eq!(parse_manifest(&again).unwrap(), found);
        }
    }

    #[test]
    fn numbers_come_back_bit_for_bit(
        mean in prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        std in prop::num::f32::POSITIVE,
        share in f64::MIN_POSITIVE..=1.0,
        sigma in prop::num::f64::POSITIVE,
        time in f64::MIN_POSITIVE..1.0,
    ) {
        let mut manifest: Manifest = manifest();
        manifest.videos[0].latent_mean = vec![mean, 0.1 + 0.2];
        manifest.videos[0].latent_std = vec![std, 1.0];
        manifest.sampling.sigma_max = sigma;
        manifest.sampling.boundary = Some(time);
        let Attention::SageSla { topk, .. } = &mut manifest.recipe.attention else { panic!() };
        *topk = share;
        manifest.check().unwrap();
        let json = serde_json::to_vec_pretty(&manifest).unwrap();
        let found = parse_manifest(&json).unwrap();
        prop_assert_eq!(found.videos[0].latent_mean[0].to_bits(), mean.to_bits());
        prop_assert_eq!(found, manifest);
    }
}
