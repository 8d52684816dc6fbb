//! Checks the normaliser table of a SentencePiece model before the `tokenizers` crate walks it, which it does
//! without bounds checks of its own: a damaged table would end the process.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Checks every `precompiled_charsmap` of a tokenizer's normaliser; says what is wrong with the first bad one.
pub(crate) fn check(normalizer: &Value) -> Result<(), String> {
    match normalizer {
        Value::Object(fields) => {
            if let Some(table) = fields.get("precompiled_charsmap") {
                let text = table.as_str().ok_or("precompiled_charsmap is not a string")?;
                let bytes = BASE64_STANDARD.decode(text).map_err(|e| format!("precompiled_charsmap: {e}"))?;
                check_table(&bytes).map_err(|problem| format!("precompiled_charsmap: {problem}"))?;
            }
            fields.values().try_for_each(check)
        }
        Value::Array(parts) => parts.iter().try_for_each(check),
        _ => Ok(()),
    }
}

/// A table is the byte length of a trie (u32, little-endian), the trie as a darts double array of u32 units, and
/// the replacements, each ended by a NUL. Follows every path of the trie and every leaf into the replacements.
fn check_table(bytes: &[u8]) -> Result<(), String> {
    let (length, rest) = bytes.split_first_chunk().ok_or("it is empty")?;
    let length = u32::from_le_bytes(*length) as usize;
    if !length.is_multiple_of(4) || length == 0 || length > rest.len() {
        return Err(format!("a trie of {length} bytes does not fit {} bytes", rest.len()));
    }
    let (trie, replacements) = rest.split_at(length);
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|&unit| u32::from_le_bytes(unit)).collect();
    let replacements = std::str::from_utf8(replacements).map_err(|e| format!("replacements: {e}"))?;

    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(units[0])];
    while let Some(base) = open.pop() {
        // A lookup reads the unit of any next byte: the whole block of 256 has to be there.
        if base | 0xff >= units.len() {
            return Err(format!("node {base} lies outside of {} units", units.len()));
        }
        if std::mem::replace(&mut seen[base], true) {
            continue;
        }
        for byte in 1..=0xff {
            let unit = units[base ^ byte];
            if unit & 0x8000_00ff != byte as u32 {
                continue;
            }
            let next = base ^ byte ^ offset(unit);
            if unit & 0x100 != 0 {
                let leaf = *units.get(next).ok_or_else(|| format!("leaf {next} lies outside"))?;
                let value = (leaf & 0x7fff_ffff) as usize;
                if !replacements.is_char_boundary(value) {
                    return Err(format!("replacement {value} lies outside of {} bytes", replacements.len()));
                }
            }
            open.push(next);
        }
    }
    Ok(())
}

/// How far the children of a unit are from it (darts-clone).
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 0x200) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One block of 256 units in which "a" is a leaf for replacement 0.
    fn table() -> Vec<u8> {
        let mut units = [0u32; 256];
        units[usize::from(b'a')] = u32::from(b'a') | 0x100 | (u32::from(b'a') << 10);
        let mut bytes = 1024u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"b\0");
        bytes
    }

    #[test]
    fn sound_and_damaged_tables() {
        check_table(&table()).unwrap();
        let change = |at: usize, value: u32| {
            let mut bytes = table();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            check_table(&bytes).unwrap_err()
        };
        assert!(change(0, u32::MAX).contains("does not fit"));
        assert!(change(4, u32::MAX << 10).contains("outside of 256 units"));
        assert!(change(4 + 4 * 97, 97 | 0x100 | 9999 << 10).contains("outside"));
        // The leaf of "a" is unit 0, whose value is a position among the replacements.
        assert!(check_table(&table()[..1024]).is_err());
        assert!(check_table(&[]).is_err());
        assert!(check(&serde_json::json!({"normalizers": [{"precompiled_charsmap": "?"}]})).is_err());
        assert!(check(&serde_json::json!({"normalizers": [{"precompiled_charsmap": 7}]})).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_fine(flips in proptest::collection::vec((0usize..1030, any::<u8>()), 0..8)) {
            let mut bytes = table();
            for (at, value) in flips {
                bytes[at] = value;
            }
            let _ = check_table(&bytes);
        }
    }
}
