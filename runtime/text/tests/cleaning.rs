//! Cleaning against what the reference's Python packages return.

/// Pairs of a prompt and its cleaned form, from Python with ftfy 6.3.1, `html` and `regex`: mojibake in ten encodings
/// and several layers, curly quotes, ligatures, widths, controls, terminal escapes, entities, emoji, many scripts.
const PAIRS: &str = include_str!("cleaning.json");

#[test]
fn cleaning_is_pythons() {
    let pairs: Vec<(String, String)> = serde_json::from_str(PAIRS).unwrap();
    assert_eq!(pairs.len(), 400);
    for (prompt, expected) in pairs {
        assert_eq!(turbo_text::clean(&prompt), expected, "{prompt:?}");
    }
}
