//! What a file that is not an engine file seems to be, so that the error can name it.

/// A guess from the first bytes, with an article.
pub(crate) fn looks_like(bytes: &[u8]) -> String {
    const MAGIC: &[(&[u8], &str)] = &[
        (b"\x7fELF", "an ELF program or library"),
        (b"MZ", "a Windows program or library"),
        (b"\xcf\xfa\xed\xfe", "a macOS program or library"),
        (b"GGUF", "a GGUF model"),
        (b"\x80\x02", "a PyTorch checkpoint in the old pickle format"),
        (b"ftrt", "a bare TensorRT engine"),
        (b"PK\x05\x06", "an empty ZIP archive"),
        (b"\x1f\x8b", "gzip data"),
        (b"\x28\xb5\x2f\xfd", "Zstandard data"),
        (b"\xfd7zXZ\0", "xz data"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"%PDF", "a PDF document"),
        (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with `git lfs pull`)"),
    ];
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*what).into();
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return "an MP4 video".into();
    }
    if is_safetensors(bytes) {
        return "a safetensors checkpoint".into();
    }
    if is_onnx(bytes) {
        return "an ONNX model".into();
    }
    let head = &bytes[..bytes.len().min(512)];
    if head.iter().all(|&b| b == 0) {
        return "a file that starts with zeros (a download or copy that was not finished?)".into();
    }
    if let Some(text) = as_text(head) {
        let text = text.trim_start().to_ascii_lowercase();
        return match text.as_bytes() {
            [b'<', ..] if text.starts_with("<!doctype html") || text.starts_with("<html") => {
                "an HTML page (a download that ended on an error page?)"
            }
            [b'{' | b'[', ..] => "a JSON file",
            _ => "a text file",
        }
        .into();
    }
    let first: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("unknown data (it starts with {})", first.join(" "))
}

/// A guess from the entry names of a ZIP that has no manifest.
pub(crate) fn zip_looks_like<'a>(mut names: impl Iterator<Item = &'a [u8]>) -> String {
    if names.any(|name| name.ends_with(b"/data.pkl")) {
        "a PyTorch checkpoint".into()
    } else {
        "a ZIP archive without manifest.json".into()
    }
}

/// An 8-byte header length that fits the file, then the header's JSON object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else { return false };
    u64::from_le_bytes(*len) <= rest.len() as u64 && rest.starts_with(b"{")
}

/// A protobuf that starts with a small `ir_version` and goes on with another field of ModelProto.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=31, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42, ..])
}

fn as_text(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The cut after 512 bytes may go through a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    text.chars().all(|c| !c.is_control() || "\t\r\n".contains(c)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::looks_like;

    #[test]
    fn names_what_users_mix_up_with_an_engine_file() {
        let safetensors = b"\x02\0\0\0\0\0\0\0{}".as_slice();
        let long_text = format!("{}é", "a".repeat(511));
        for (bytes, what) in [
            (safetensors, "safetensors"),
            (b"\x08\x0a\x12\x05turbo", "ONNX"),
            (b"\x7fELF\x02", "ELF"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"\n <html lang=en>", "HTML"),
            (b"{\"error\": 404}", "JSON"),
            (b"Not found\n", "text"),
            (long_text.as_bytes(), "text"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"\x80\x02}q\0", "pickle"),
            (b"GGUF\x03", "GGUF"),
            (&[0; 600], "zeros"),
            (b"\0\0\0\x20ftypisom", "MP4"),
            (b"PK\x05\x06", "empty ZIP"),
            (b"\x9e\x01\xff\x03", "unknown data (it starts with 9e 01 ff 03)"),
        ] {
            let found = looks_like(bytes);
            assert!(found.contains(what), "{what}: {found}");
        }
    }
}
