//! Which entry names an engine file may have.

/// Longest entry name in bytes.
const MAX_NAME: usize = 200;

/// Checks that `name` is a clean relative path that means the same file on every system. The alphabet is
/// small on purpose: no normalisation, no drive letters, nothing that a shell or a terminal interprets.
pub(crate) fn check(name: &[u8]) -> Result<&str, &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > MAX_NAME {
        return Err("it is longer than 200 bytes");
    }
    if name.contains(&b'\\') {
        return Err("it has a backslash; folders are separated by `/`");
    }
    if name[0] == b'/' {
        return Err("it is an absolute path");
    }
    if name.contains(&b':') {
        return Err("it has a colon, as a drive name has");
    }
    if !name.iter().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(b)) {
        return Err("it has characters other than letters, digits, `.`, `_`, `-` and `/`");
    }
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" => return Err("it has an empty folder or file name"),
            b"." | b".." => return Err("it has a `.` or `..` part, which could lead outside"),
            _ if part.ends_with(b".") => return Err("a part of it ends in `.`"),
            _ => {}
        }
    }
    std::str::from_utf8(name).map_err(|_| "it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn clean_names_pass() {
        let long = "x".repeat(200);
        for name in ["manifest.json", "weights/dit-high_noise.safetensors", ".hidden", "a/b/c", long.as_str()]
        {
            assert_eq!(check(name.as_bytes()), Ok(name));
        }
    }

    #[test]
    fn unclean_names_say_which_rule_they_break() {
        let long = "x".repeat(201);
        for (name, why) in [
            ("", "empty"),
            ("/etc/passwd", "absolute"),
            ("../x", "lead outside"),
            ("a/../x", "lead outside"),
            ("a/./x", "lead outside"),
            ("a//x", "empty folder"),
            ("a/", "empty folder"),
            ("..\\x", "backslash"),
            ("C:/x", "drive"),
            ("c:x", "drive"),
            ("a\0b", "characters"),
            ("a b", "characters"),
            ("ünïcode", "characters"),
            ("con.", "ends in"),
            (long.as_str(), "longer"),
        ] {
            let found = check(name.as_bytes()).expect_err(name);
            assert!(found.contains(why), "{name}: {found}");
        }
    }
}
