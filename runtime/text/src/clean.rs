//! The text a prompt stands for.

use crate::{ftfy, html};

/// `prompt` as the reference tokenises it: [ftfy](https://ftfy.readthedocs.io)'s repairs, HTML entities decoded
/// twice, runs of white space made one space, none at the ends.
///
/// Source: `basic_clean` and `whitespace_clean` of TurboDiffusion's `rcm/utils/umt5.py`.
pub fn clean(prompt: &str) -> String {
    let text = html::unescape(&html::unescape(&ftfy::fix_text(prompt)));
    // Python's strip also takes the separators U+001C to U+001F, but neither step above leaves any.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_steps_together() {
        for (prompt, expected) in [
            ("  a\t b\r\nc ", "a b c"),
            ("\u{a0}\u{2003}\u{3000}", ""),
            ("zero\u{200b}width", "zero\u{200b}width"),
            ("&amp;lt;b&amp;gt; &amp;amp;amp;", "<b> &"),
            ("a < b &amp;amp; c &copy2024", "a < b & c ©2024"),
            ("\u{1c}\u{1d}x&#28;", "x"),
            ("schÃ¶n “so” ﬁne", "schön \"so\" fine"),
        ] {
            assert_eq!(clean(prompt), expected, "{prompt:?}");
        }
    }

    proptest! {
        #[test]
        fn white_space_is_single_spaces(prompt in r"(\PC|\s|&[a-z#0-9]{1,6};?|[\x00-\x20\u{80}-\u{a0}]|Ã[\u{80}-\u{bf} ]){0,40}") {
            let text = clean(&prompt);
            prop_assert!(text.trim() == text && !text.contains("  "));
            let python_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
            prop_assert!(text.chars().all(|c| c == ' ' || !python_space(c)));
        }
    }
}
