//! Repairs of broken text: what `ftfy.fix_text` of ftfy 6.3 does with its default settings.
//!
//! Written from ftfy's documented behaviour, its character classes taken as data (ftfy is Apache-2.0, by Robyn
//! Speer). One of its steps has no counterpart: a Rust string cannot hold the lone surrogates it joins.

mod badness;
mod charmap;
mod detect;
mod encoding;

use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

pub(crate) use charmap::windows_1252;

use crate::html;

/// `text` repaired, line by line.
pub(crate) fn fix_text(text: &str) -> String {
    let mut entities = true;
    text.split_inclusive('\n')
        .map(|line| {
            // A tag makes this HTML source, whose entities mean themselves: here and in all that follows.
            entities &= !line.contains('<');
            fix_line(line, entities)
        })
        .collect()
}

/// Repeats the repairs until nothing changes: one may bring to light what another mends.
fn fix_line(line: &str, entities: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let decoded = if entities { html::unescape_certain(&text) } else { text.clone() };
        let fixed = fix_characters(&encoding::fix_encoding(&decoded));
        if fixed == text {
            return fixed;
        }
        text = fixed;
    }
}

/// Repairs that look at characters rather than at encodings, in ftfy's order.
fn fix_characters(text: &str) -> String {
    static TERMINAL_ESCAPE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[a-zA-Z]").ok());
    if text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t')) {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        each_standard_form(c, &mut |c| plain.push(straight(c)));
    }
    let lines = plain.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
    let shown =
        TERMINAL_ESCAPE.as_ref().map_or(lines.as_str().into(), |escape| escape.replace_all(&lines, ""));
    shown.chars().filter(|&c| !is_stray_control(c)).nfc().collect()
}

/// C1 controls as Windows-1252, Latin ligatures taken apart, full-width and half-width forms made ordinary.
fn each_standard_form(c: char, push: &mut impl FnMut(char)) {
    match c {
        '\u{80}'..='\u{9f}' => push(windows_1252(c as u8)),
        '\u{3000}' => push(' '),
        '\u{ff01}'..='\u{ffef}' => std::iter::once(c).nfkc().for_each(push),
        _ => match ligature(c) {
            Some(letters) => letters.chars().for_each(push),
            None => push(c),
        },
    }
}

/// The letters of a typographical ligature or of a digraph with a code point of its own.
fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    }
}

/// Control characters that nobody means: neither white space, nor joiners and direction marks, nor C1, which are
/// traces of a wrong encoding.
fn is_stray_control(c: char) -> bool {
    matches!(c,
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

#[cfg(test)]
mod tests;
