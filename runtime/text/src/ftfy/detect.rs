//! Runs of characters that look like UTF-8 sequences read in a single-byte encoding, inside other text.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use super::charmap::CHARMAPS;

/// What byte of a UTF-8 sequence a character may be, in any of the encodings that count.
#[derive(Clone, Copy, Default)]
struct Roles {
    /// Length of the sequence that it may start: 2, 3 or 4; 0 for none.
    starts: usize,
    /// May continue a sequence.
    continues: bool,
    /// May continue a sequence and rarely stands for itself beside one: no space, dash, quote, bullet or ellipsis.
    continues_strictly: bool,
}

static ROLES: LazyLock<HashMap<char, Roles>> = LazyLock::new(|| {
    let mut roles = HashMap::<char, Roles>::new();
    for map in CHARMAPS.iter().filter(|map| map.clue) {
        for byte in 0x80..=0xff {
            let c = map.upper(byte);
            let roles = roles.entry(c).or_default();
            match byte {
                0x80..=0xbf => {
                    roles.continues = true;
                    roles.continues_strictly = !"–—―‘’‚“”„•…".contains(c);
                }
                0xc2..=0xdf => roles.starts = 2,
                0xe0..=0xef => roles.starts = 3,
                // Emoji and tags; other planes are unassigned or rare.
                0xf0 | 0xf3 => roles.starts = 4,
                _ => {}
            }
        }
    }
    // A non-breaking space that something made an ordinary one.
    roles.entry(' ').or_default().continues = true;
    roles
});

/// Index ranges of the longest runs of such sequences. None starts right after a character that looks like the rest
/// of an earlier sequence, so that a long garble is not mended in bits.
pub(super) fn embedded_utf8(text: &[char]) -> Vec<Range<usize>> {
    let roles = |at: usize| text.get(at).and_then(|c| ROLES.get(c)).copied().unwrap_or_default();
    let sequence = |at: usize| match roles(at).starts {
        0 => 0,
        length if (at + 1..at + length).all(|at| roles(at).continues) => length,
        _ => 0,
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let start = at;
        if at == 0 || !roles(at - 1).continues_strictly {
            loop {
                match sequence(at) {
                    0 => break,
                    length => at += length,
                }
            }
        }
        if at > start {
            found.push(start..at);
        } else {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        let runs = |text: &str| -> Vec<String> {
            let chars: Vec<char> = text.chars().collect();
            embedded_utf8(&chars).into_iter().map(|range| chars[range].iter().collect()).collect()
        };
        assert_eq!(runs("a Ã© b"), ["Ã©"]);
        assert_eq!(runs("Ã©Ã¨ and â€œx"), ["Ã©Ã¨", "â€œ"]);
        assert_eq!(runs("Ã la"), ["Ã "]);
        assert_eq!(runs("±Ã©"), [""; 0], "after a strict continuation");
        assert_eq!(runs("—Ã©"), ["Ã©"], "a dash stands for itself");
        assert_eq!(runs("ðŸŽ‰ ðŸŽ"), ["ðŸŽ‰"]);
        assert_eq!(runs(""), [""; 0]);
    }

    /// Sizes of ftfy 6.3.1's character classes.
    #[test]
    fn classes() {
        let count = |pick: fn(&Roles) -> bool| ROLES.values().filter(|roles| pick(roles)).count();
        assert_eq!(count(|r| r.starts == 2), 124);
        assert_eq!(count(|r| r.starts == 3), 66);
        assert_eq!(count(|r| r.starts == 4), 9);
        assert_eq!(count(|r| r.continues), 159);
        assert_eq!(count(|r| r.continues_strictly), 147);
    }
}
