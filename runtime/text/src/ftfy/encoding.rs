//! UTF-8 that was read in a single-byte encoding, read again the right way.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::badness::is_bad;
use super::charmap::{CHARMAPS, Charmap, windows_1252};
use super::detect::embedded_utf8;

/// `text` with its encoding repaired as often as it takes.
pub(super) fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some(fixed) = fix_once(&text).filter(|fixed| *fixed != text) {
        text = fixed;
    }
    text
}

fn fix_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    if let Some(fixed) = CHARMAPS.iter().find_map(|map| decode(map, map.encode(text)?)) {
        return Some(fixed);
    }
    let fixed = fix_embedded(text);
    if fixed != text {
        return Some(fixed);
    }
    // What is left are C1 controls. Text that is Latin-1 altogether was Windows-1252 if it has no unassigned
    // byte; else each control that has a character there is taken for it. Both come to the same.
    let is_c1 = |c: char| ('\u{80}'..='\u{9f}').contains(&c);
    text.contains(is_c1)
        .then(|| text.chars().map(|c| if is_c1(c) { windows_1252(c as u8) } else { c }).collect())
}

/// The UTF-8 that `bytes`, read through `map`, should have been.
fn decode(map: &Charmap, mut bytes: Vec<u8>) -> Option<String> {
    if map.restores_spaces {
        bytes = restore_spaces(&bytes);
    }
    if map.sloppy {
        bytes = replace_lossy(&bytes);
    }
    decode_utf8_variants(&bytes)
}

/// Puts back byte 0xA0 where a space, its look-alike, breaks a sequence.
fn restore_spaces(bytes: &[u8]) -> Vec<u8> {
    // Only where the result is a likely character: not before 0xA0 in scripts nobody mixes with Latin letters.
    static BROKEN: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ",
        )
        .ok()
    });
    // "Ã" before a space is mostly the word "à", whose own space got lost, unless a word like "àquela" follows.
    let mut spaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        spaced.push(byte);
        rest = after;
        if let (0xc3, Some(word)) = (byte, after.strip_prefix(b" ")) {
            let joined = [&b" "[..], b"quele", b"quela", b"quilo", b"s "];
            if !joined.iter().any(|start| word.starts_with(start)) {
                spaced.extend_from_slice(b"\xa0 ");
                rest = word;
            }
        }
    }
    let Some(broken) = BROKEN.as_ref() else { return spaced };
    broken
        .replace_all(&spaced, |found: &regex::bytes::Captures<'_>| -> Vec<u8> {
            found[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect()
        })
        .into_owned()
}

/// Makes U+FFFD of sequences that have lost a byte (to [`super::charmap::LOST`], or to one question mark).
fn replace_lossy(bytes: &[u8]) -> Vec<u8> {
    static LOSSY: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            r"(?x-u) [\xc2-\xdf]\x1a
            | [\xc2\xc3]\?
            | \xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]
            | \xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]
            | [\xe0-\xef][\x1a?][\x1a\x80-\xbf]
            | [\xe0-\xef][\x1a\x80-\xbf][\x1a?]
            | [\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]
            | [\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]
            | [\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]
            | \x1a",
        )
        .ok()
    });
    match LOSSY.as_ref() {
        Some(lossy) => lossy.replace_all(bytes, "\u{fffd}".as_bytes()).into_owned(),
        None => bytes.to_vec(),
    }
}

/// UTF-8, CESU-8 (surrogate pairs of three bytes each) and Java's two-byte NUL, mixed.
fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let (c, length) = match bytes[at..] {
            // ftfy's patterns take a line end at the very end of the text for the end itself.
            [0xc0, 0x80, ..] | [0xc0, b'\n'] => ('\0', 2),
            [0xed, b @ 0xa0..=0xaf, c @ 0x80..=0xbf, 0xed, e @ 0xb0..=0xbf, f, ref rest @ ..]
                if matches!(f, 0x80..=0xbf) || (f == b'\n' && rest.is_empty()) =>
            {
                let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
                let low20 = bits(b, 0x0f, 16) | bits(c, 0x3f, 10) | bits(e, 0x0f, 6) | bits(f, 0x3f, 0);
                (char::from_u32(0x1_0000 + low20)?, 6)
            }
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(std::str::from_utf8(&bytes[start..at]).ok()?);
        out.push(c);
        at += length;
        start = at;
    }
    out.push_str(std::str::from_utf8(&bytes[start..]).ok()?);
    Some(out)
}

/// Repairs the runs that look like UTF-8 when the text as a whole cannot be read in any one encoding. The runs are
/// shorter than the text, and each layer of mojibake about halves its text: the recursion is shallow.
fn fix_embedded(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for run in embedded_utf8(&chars) {
        out.extend(&chars[end..run.start]);
        end = run.end;
        let piece: String = chars[run.clone()].iter().collect();
        if run.len() < chars.len() && is_bad(&piece) {
            out.push_str(&fix_encoding(&piece));
        } else {
            out.push_str(&piece);
        }
    }
    out.extend(&chars[end..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_of_utf8() {
        let decode = |bytes: &[u8]| decode_utf8_variants(bytes);
        assert_eq!(decode(b"a\xc3\xa9").as_deref(), Some("aé"));
        assert_eq!(decode(b"\xed\xa0\xbd\xed\xb8\x80!").as_deref(), Some("😀!"));
        assert_eq!(decode(b"\xc0\x80x").as_deref(), Some("\0x"));
        assert_eq!(decode(b"\xed\x95\x9c\xea\xb5\xad").as_deref(), Some("한국"), "0xED also starts Hangul");
        for wrong in [&b"\xed\xa0\xbd"[..], b"\xed\xb8\x80", b"\xc0", b"\xc0\xaf", b"\xff", b"\xc3"] {
            assert_eq!(decode(wrong), None, "{wrong:x?}");
        }
    }

    #[test]
    fn spaces_and_losses() {
        assert_eq!(restore_spaces(b"\xc3 la \xc3 quela \xc3s"), b"\xc3\xa0 la \xc3\xa0quela \xc3s");
        assert_eq!(restore_spaces(b"\xe2 \x85 \xe2 \x80"), b"\xe2 \x85 \xe2\xa0\x80");
        assert_eq!(replace_lossy(b"\xe2\x80\x1a \x1a \xc3?"), "\u{fffd} \u{fffd} \u{fffd}".as_bytes());
    }
}
