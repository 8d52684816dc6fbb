//! Expected values are what Python's ftfy 6.3.1 returns.

use proptest::prelude::*;

use super::*;

#[test]
fn mojibake() {
    for (text, expected) in [
        ("âœ” No problems", "✔ No problems"),
        ("schÃ¶n cafÃ©", "schön café"),
        ("ðŸŽ‰", "🎉"),
        ("ÃƒÂ©", "é"),
        ("voilÃ le travail", "voilà le travail"),
        ("Ã la mode Ã quela", "à la mode àquela"),
        ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
        ("РїСЂРёРІРµС‚", "привет"),
        ("‚Äúquoted‚Äù", "\"quoted\""),
        ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
        ("l’humanitÃ©", "l'humanité"),
        ("ГўВЂВ™ s", "' s"),
    ] {
        assert_eq!(fix_text(text), expected, "{text:?}");
    }
}

#[test]
fn characters() {
    for (text, expected) in [
        ("ＬＯＵＤ　ＮＯＩＳＥＳ Ｕﾀｰﾝ", "LOUD NOISES Uターン"),
        ("ﬂuﬃeﬆ ŉ ǆ", "fluffiest 'n dž"),
        ("“a” ‘b’ „c“ «d»", "\"a\" 'b' \"c\" «d»"),
        ("a\r\nb\rc\u{2028}d\u{2029}e\u{85}f", "a\nb\nc\nd\ne…f"),
        ("\u{1b}[36;44mblue\u{1b}[0m", "blue"),
        ("\0\u{7}\u{b}a\u{7f}\u{206a}\u{feff}\u{fff9}\u{fffc}\t\u{200d}", "a\t\u{200d}"),
        ("e\u{301} A\u{30a} \u{1100}\u{1161}", "é Å 가"),
        ("\u{91}x\u{92} \u{81}", "'x' \u{81}"),
    ] {
        assert_eq!(fix_text(text), expected, "{text:?}");
    }
}

#[test]
fn entities_stop_at_the_first_tag() {
    assert_eq!(fix_text("&amp; &lt;b&gt; &amp;amp;"), "& <b> &");
    assert_eq!(fix_text("a <b> &amp;"), "a <b> &amp;");
    assert_eq!(fix_text("&amp;\n<\n&amp;"), "&\n<\n&amp;");
}

#[test]
fn sound_text_stays() {
    for text in [
        "",
        "A cat.",
        "L'été à Łódź, Ünïcödé",
        "Привет, мир! Γειά σου",
        "日本語 한국어 हिन्दी ไทย",
        "😀 👨\u{200d}👩 🇫🇷",
        "x² ≤ √2 · ½ ™",
    ] {
        assert_eq!(fix_text(text), text);
    }
}

/// Text of the characters that matter, so that the repairs have something to do.
fn garble() -> impl Strategy<Value = String> {
    let letters: Vec<char> =
        charmap::CHARMAPS.iter().flat_map(|map| (0x80..=0xff).map(|byte| map.upper(byte))).collect();
    let pieces = prop_oneof![
        4 => proptest::sample::select(letters).prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => "[ -~\n]{1,3}",
        1 => "&[a-zA-Z0-9#]{1,5};?",
    ];
    proptest::collection::vec(pieces, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_ends_repaired(text in garble()) {
        let fixed = fix_text(&text);
        prop_assert!(!fixed.contains(|c| is_stray_control(c) || c == '\r' || straight(c) != c || ligature(c).is_some()));
    }

    /// What went through one wrong encoding comes back whole.
    #[test]
    fn one_layer_of_mojibake_is_undone(words in proptest::collection::vec("[а-яё]{3,8}", 2..6), which in 0usize..2) {
        let text = words.join(" ");
        let garbled: String = text.bytes().map(|b| if b < 0x80 { char::from(b) } else { charmap::CHARMAPS[which].upper(b) }).collect();
        prop_assert_eq!(fix_text(&garbled), text);
    }
}
