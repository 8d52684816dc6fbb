//! HTML entities, by the two rules that the cleaning needs.

use std::collections::HashMap;
use std::sync::LazyLock;

use htmlize::ENTITIES;

/// Most characters of a name after `&`, not counting the semicolon (Python's `html.unescape`).
const MAX_NAME: usize = 32;

/// Most characters of an entity that [`unescape_certain`] looks at, between `&` and `;`.
const MAX_CERTAIN: usize = 24;

/// The value of an entity written as in the HTML 5 table: `&amp;`, and `&amp` where the table allows it.
fn named(entity: &str) -> Option<&'static str> {
    std::str::from_utf8(ENTITIES.get(entity.as_bytes())?).ok()
}

/// The longest entity of the table that `text` starts with and goes on after, at least two characters past `&`.
fn longest_prefix(text: &str) -> Option<(&'static str, usize)> {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(3).collect();
    ends.into_iter().rev().find_map(|end| Some((named(&text[..end])?, end)))
}

/// Python's `html.unescape`: every reference that a browser would decode, with or without its semicolon.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match numeric(rest) {
            Some((number, length)) => {
                out.extend(code_point(number));
                length
            }
            None => {
                let length = name_length(rest);
                let (value, used) = named(&rest[..length])
                    .map(|value| (value, length))
                    .or_else(|| longest_prefix(&rest[..length]))
                    .unwrap_or(("", 0));
                out.push_str(value);
                out.push_str(&rest[used..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// Bytes of the `&` and the name after it, semicolon included. Just the `&` when no name follows.
fn name_length(text: &str) -> usize {
    let name = &text[1..];
    let end = name
        .char_indices()
        .enumerate()
        .find(|&(count, (_, c))| {
            count == MAX_NAME || matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';')
        })
        .map_or(name.len(), |(_, (at, _))| at);
    1 + end + usize::from(end > 0 && name[end..].starts_with(';'))
}

/// Number and length of the `&#...` or `&#x...` at the start of `text`; numbers beyond u32 become `u32::MAX`.
fn numeric(text: &str) -> Option<(u32, usize)> {
    let digits = text.strip_prefix("&#")?;
    let (digits, radix, prefix) = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => (hex, 16, 3),
        None => (digits, 10, 2),
    };
    let count = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if count == 0 {
        return None;
    }
    let number = u32::from_str_radix(&digits[..count], radix).unwrap_or(u32::MAX);
    Some((number, prefix + count + usize::from(digits[count..].starts_with(';'))))
}

/// What a numeric reference stands for in HTML 5: old Windows-1252 numbers are honoured, code points that are no
/// characters vanish.
fn code_point(number: u32) -> Option<char> {
    match number {
        0 => Some(char::REPLACEMENT_CHARACTER),
        0x80..=0x9f => Some(crate::ftfy::windows_1252(number as u8)),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        0x1_0000.. | 0xfffe | 0xffff if number & 0xfffe == 0xfffe && number <= 0x10_ffff => None,
        _ => Some(char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
}

/// ftfy's rule, for text that may not be HTML at all: only complete references with their semicolon, and also
/// names that something put in capitals (`&EACUTE;`).
pub(crate) fn unescape_certain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = certain_length(rest).unwrap_or(1);
        let entity = &rest[..length];
        if let Some(value) = named(entity).or_else(|| CAPITALS.get(entity).map(String::as_str)) {
            out.push_str(value);
        } else if entity.starts_with("&#") {
            let value = unescape(entity);
            // A semicolon that is still there means that only a part was understood.
            out.push_str(if value.contains(';') { entity } else { &value });
        } else {
            out.push_str(entity);
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

fn certain_length(text: &str) -> Option<usize> {
    let start = if text.starts_with("&#") { 2 } else { 1 };
    let count = text[start..].bytes().take_while(u8::is_ascii_alphanumeric).count();
    let complete = text.as_bytes().get(start + count) == Some(&b';');
    (complete && (1..=MAX_CERTAIN).contains(&count)).then_some(start + count + 1)
}

/// Entities with lower-case names, under their names in capitals, where that means nothing else.
static CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let entities = ENTITIES.entries().filter_map(|(name, value)| {
        Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
    });
    entities
        .filter(|(name, _)| name.ends_with(';') && !name.contains(|c: char| c.is_ascii_uppercase()))
        .map(|(name, value)| (name.to_ascii_uppercase(), value.to_uppercase()))
        .filter(|(name, _)| named(name).is_none() && longest_prefix(name).is_none())
        .collect()
});

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Expected values are those of Python's `html.unescape`.
    #[test]
    fn browsers_rule() {
        for (text, expected) in [
            ("&amp &lt;b&gt &notit; &not it &copy2024", "& <b> ¬it; ¬ it ©2024"),
            ("&#65;&#x42&#X43;&#65ab;&#;&#x;&#xg;", "ABCAab;&#;&#x;&#xg;"),
            ("&#0;&#128;&#x81;&#13;&#1;&#xFDD0;&#x1FFFE;&#xFFFF;|", "\u{fffd}€\u{81}\r|"),
            (
                "&#xD800;&#x110000;&#99999999999999999999;&#xFDCF;&#xFDF0;",
                "\u{fffd}\u{fffd}\u{fffd}\u{fdcf}\u{fdf0}",
            ),
            ("&CounterClockwiseContourIntegral;&NotEqualTilde;", "∳≂\u{338}"),
            ("& && &; &é; &aé &nosuch; &lté", "& && &; &é; &aé &nosuch; <é"),
            ("&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaamp;", "&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaamp;"),
            ("&ltaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa;", "<aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa;"),
            ("&amp;amp;", "&amp;"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    /// Expected values are those of ftfy 6.3.1's `unescape_html`.
    #[test]
    fn certain_rule() {
        for (text, expected) in [
            ("&lt;tag&gt; P&EACUTE;REZ BUNDESSTRA&SZLIG;E", "<tag> PÉREZ BUNDESSTRASSE"),
            ("&ntilde; &Ntilde; &NTILDE; &nTILDE;", "ñ Ñ Ñ &nTILDE;"),
            ("&amp &copy2024 &notit; &#12ab; &#59; &#X41;", "&amp &copy2024 &notit; &#12ab; &#59; A"),
            (
                "&CounterClockwiseContourIntegral; &LT; &GTCC; &;",
                "&CounterClockwiseContourIntegral; < &GTCC; &;",
            ),
        ] {
            assert_eq!(unescape_certain(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_fine(text in r"(&|#|x|;|[0-9a-fA-F]|amp|lt|\PC){0,60}") {
            let _ = (unescape(&text), unescape_certain(&text));
        }

        #[test]
        fn text_without_references_stays(text in "[^&]{0,40}") {
            prop_assert_eq!(unescape(&text), text.clone());
            prop_assert_eq!(unescape_certain(&text), text);
        }
    }
}
