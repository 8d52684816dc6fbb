//! Single-byte encodings: the ones that UTF-8 gets mistaken for.

use std::collections::HashMap;
use std::sync::LazyLock;

use encoding_rs::{
    ISO_8859_2, MACINTOSH, WINDOWS_1250, WINDOWS_1251, WINDOWS_1252, WINDOWS_1253, WINDOWS_1254, WINDOWS_1257,
};

/// Bytes 0x80 to 0xff of IBM code page 437, which no web encoding covers.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                     αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Stands for U+FFFD in a sloppy encoding: the byte that was lost.
pub(super) const LOST: u8 = 0x1a;

/// One encoding with ASCII below 0x80.
pub(super) struct Charmap {
    /// Characters of bytes 0x80 to 0xff.
    upper: Vec<char>,
    bytes: HashMap<char, u8>,
    /// The Windows encodings: bytes without a character keep their number, and [`LOST`] stands for U+FFFD.
    pub(super) sloppy: bool,
    /// Whether a space may be a non-breaking space in disguise. Not in Mac Roman, where byte 0xA0 is a dagger and
    /// an en dash before a space would be taken for the start of a sequence.
    pub(super) restores_spaces: bool,
    /// Whether characters of this encoding count as clues of embedded UTF-8 (see `detect`).
    pub(super) clue: bool,
}

/// In the order in which they are tried. The first is Latin-1.
pub(super) static CHARMAPS: LazyLock<[Charmap; 10]> = LazyLock::new(|| {
    let web = |encoding: &'static encoding_rs::Encoding| {
        move |byte: u8| {
            let bytes = [byte];
            let (text, damaged) = encoding.decode_without_bom_handling(&bytes);
            text.chars().next().filter(|_| !damaged).unwrap_or(char::from(byte))
        }
    };
    let windows = |encoding| Charmap::new(web(encoding), true);
    let plain = |encoding| Charmap::new(web(encoding), false);
    [
        Charmap { clue: true, ..Charmap::new(char::from, false) },
        windows(WINDOWS_1252),
        windows(WINDOWS_1251),
        windows(WINDOWS_1250),
        windows(WINDOWS_1253),
        windows(WINDOWS_1254),
        windows(WINDOWS_1257),
        plain(ISO_8859_2),
        Charmap { restores_spaces: false, ..plain(MACINTOSH) },
        Charmap::new(|byte| CP437.chars().nth(usize::from(byte) - 0x80).unwrap_or(char::from(byte)), false),
    ]
});

impl Charmap {
    fn new(decode: impl Fn(u8) -> char, sloppy: bool) -> Self {
        let upper: Vec<char> = (0x80..=0xff).map(decode).collect();
        let bytes = upper.iter().copied().zip(0x80..=0xff).collect();
        Self { upper, bytes, sloppy, restores_spaces: true, clue: sloppy }
    }

    /// The bytes that were read as `text` if this was the encoding; `None` if it was not.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|c| match c {
                '\x1a' if self.sloppy => None,
                '\0'..='\x7f' => Some(c as u8),
                char::REPLACEMENT_CHARACTER if self.sloppy => Some(LOST),
                _ => self.bytes.get(&c).copied(),
            })
            .collect()
    }

    /// The character of a byte of 0x80 or more.
    pub(super) fn upper(&self, byte: u8) -> char {
        self.upper[usize::from(byte & 0x7f)]
    }
}

/// The character of a C1 control (0x80 to 0x9f) in Windows-1252; five of them have none and stay.
pub(crate) fn windows_1252(byte: u8) -> char {
    CHARMAPS[1].upper(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        assert_eq!(CP437.chars().count(), 128);
        for map in CHARMAPS.iter() {
            assert_eq!(map.bytes.len(), 128, "every byte has its own character");
        }
        assert_eq!(CHARMAPS[0].encode("aÿ\x1a"), Some(vec![b'a', 0xff, 0x1a]));
        assert_eq!(CHARMAPS[0].encode("\u{100}"), None);
        assert_eq!(CHARMAPS[1].encode("€\u{81}\u{fffd}"), Some(vec![0x80, 0x81, LOST]));
        assert_eq!(CHARMAPS[1].encode("\x1a"), None);
        // Code points of unassigned bytes outside C1.
        assert_eq!(CHARMAPS[4].encode("\u{aa}\u{d2}\u{ff}"), Some(vec![0xaa, 0xd2, 0xff]));
        assert_eq!(CHARMAPS[6].encode("\u{a1}\u{a5}"), Some(vec![0xa1, 0xa5]));
        assert_eq!(CHARMAPS[8].encode("€\u{f8ff}Ω"), Some(vec![0xdb, 0xf0, 0xbd]));
        assert_eq!((windows_1252(0x80), windows_1252(0x9d)), ('€', '\u{9d}'));
    }
}
