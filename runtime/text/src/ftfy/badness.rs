//! Whether text looks like mojibake: characters side by side that hardly anybody writes so.

use std::sync::LazyLock;

use regex::Regex;

// Kinds of characters that appear when UTF-8 is read in a single-byte encoding, as ranges for a regex class.
const COMMON: &str = r"\u{a0}\u{ad}´·–-―’…";
const C1: &str = r"\u{80}-\u{9f}";
const BAD: &str = r"¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}";
const LAW: &str = "§¶";
const CURRENCY: &str = "¢£¥₧€";
const OPENING: &str = r"¡©«¿΄΅‘‚“„•‹\u{f8ff}";
const CLOSING: &str = "®»˝”›™";
const NUMERIC: &str = "±-³µ¹¼-¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥";
/// Letters of emoticon faces, which stand beside the strangest things.
const KAOMOJI: &str = "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ";
const UPPER_ACCENTED: &str = "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";
const LOWER_ACCENTED: &str = "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ";
const UPPER_COMMON: &str = "ÞΆΈ-ΊΌΎΏΑ-ΫЁ-Я";
const LOWER_COMMON: &str = "ά-ωа-џ";
const BOX: &str = "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓";

/// Python's `\s` and `\w`, where Rust's differ.
const SPACE: &str = r"[\s\x1c-\x1f]";
const WORD: &str = r"[\p{L}\p{N}_]";

static MOJIBAKE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let accented = [LOWER_ACCENTED, UPPER_ACCENTED].concat();
    let signs = [CURRENCY, NUMERIC, LAW].concat();
    let striking = [&accented, BOX, OPENING, CLOSING, &signs].concat();
    let shown = [BAD, OPENING, CLOSING, CURRENCY].concat();
    let arabic = format!("[ØÙ][{COMMON}{CURRENCY}{BAD}{NUMERIC}{OPENING}ŸŠ®°µ»]");
    let patterns = [
        format!("[{C1}]"),
        format!("[{BAD}{striking}][{BAD}]"),
        format!("[a-zA-Z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{striking}]"),
        format!("[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{CLOSING}{CURRENCY}{NUMERIC}][{UPPER_ACCENTED}]"),
        format!("[{BOX}{CLOSING}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{CLOSING}][{CURRENCY}]"),
        format!("{SPACE}[{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{accented}{BOX}{CURRENCY}{CLOSING}][{OPENING}][{NUMERIC}]"),
        format!("[{accented}{signs}{BOX}][{CLOSING}][{OPENING}]"),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{OPENING}]"),
        format!("[a-z][{UPPER_ACCENTED}][{OPENING}{CURRENCY}]"),
        format!("[{BOX}][{KAOMOJI}]"),
        format!("[{accented}{signs}{OPENING}{CLOSING}][{BOX}]"),
        format!("[{BOX}][{CLOSING}]"),
        format!("[{accented}][{OPENING}{CLOSING}]{WORD}"),
        // A ligature that no plain letter follows.
        "[Œœ][^A-Za-z]".to_owned(),
        format!("[{UPPER_ACCENTED}]°"),
        // Windows-1252: two characters, Arabic, scripts of South Asia, letters before a lost or kept U+00A0.
        format!(r"[ÂÃÎÐ][€œŠš¢£Ÿž\u{{a0}}\u{{ad}}®©°·»{OPENING}{CLOSING}–—´]"),
        "×[²³]".to_owned(),
        format!("{arabic}{arabic}"),
        "à[²µ¹¼½¾]".to_owned(),
        r"Ã[\u{a0}¡]".to_owned(),
        format!("[a-z]{SPACE}?[ÃÂ] "),
        "^[ÃÂ] ".to_owned(),
        format!("[a-z.,?!{CLOSING}]Â[ {OPENING}{CLOSING}]"),
        // Mac Roman.
        "√[±∂†≠®™´≤≥¥µø]".to_owned(),
        "≈[°¢]".to_owned(),
        "‚Ä[ìîïòôúùû†°¢π]".to_owned(),
        "‚[âó][àä°ê]".to_owned(),
        // Windows-1251: punctuation, letters, and two layers of it.
        "вЂ".to_owned(),
        format!("[ВГРС][{C1}{shown}°µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".to_owned(),
        // Windows-1253 and Windows-1257.
        r"β€[™\u{a0}Ά\u{ad}®°]".to_owned(),
        format!("[ΒΓΞΟ][{C1}{shown}°][ΒΓΞΟ]"),
        "ā€".to_owned(),
    ];
    Regex::new(&patterns.join("|")).ok()
});

/// Whether `text` holds a sequence that is far likelier mojibake than meant.
pub(super) fn is_bad(text: &str) -> bool {
    MOJIBAKE.as_ref().is_some_and(|mojibake| mojibake.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typical_texts() {
        for bad in [
            "Ã©",
            "â€œ",
            "ðŸŽ‰",
            "РїСЂРёРІРµС‚ вЂ",
            "‚Äú",
            "à²",
            "fÃ cil",
            "Ã la mode",
            "Â£5",
            "a\u{81}b",
            "┌°",
        ] {
            assert!(is_bad(bad), "{bad}");
        }
        for good in [
            "",
            "plain",
            "déjà vu",
            "Ångström",
            "50 €",
            "Привет, мир",
            "日本語",
            "¿Qué?",
            "œuvre",
            "20 °C",
            "L’été",
        ] {
            assert!(!is_bad(good), "{good}");
        }
    }
}
