//! Safetensors files, good and bad.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::fs;

use support::safetensors;
use turbo_checkpoint::safetensors::{HeaderError, MAX_HEADER_LEN, parse_header};
use turbo_checkpoint::{Checkpoint, DType, Error, check_finite};

#[test]
fn every_type_comes_out_as_it_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd name");
    let types = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];
    let mut header = r#"{"__metadata__":{"format":"pt","a":"b"}"#.to_owned();
    let mut data = vec![];
    for dtype in types {
        let begin = data.len();
        data.extend((0..6 * dtype.size()).map(|i| (begin + i) as u8));
        header += &format!(
            r#","t.{dtype}":{{"dtype":"{dtype}","shape":[2,1,3],"data_offsets":[{begin},{}]}}"#,
            data.len()
        );
    }
    fs::write(&path, safetensors(&(header + "}  "), &data)).unwrap();

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.len(), types.len());
    assert_eq!(checkpoint.files(), std::slice::from_ref(&path));
    assert_eq!(checkpoint.metadata()["format"], "pt");
    assert_eq!(checkpoint.metadata()["a"], "b");
    let mut begin = 0;
    for (view, dtype) in checkpoint.tensors().zip(types) {
        assert_eq!((view.name, view.dtype, view.shape), (&*format!("t.{dtype}"), dtype, &[2, 1, 3][..]));
        assert_eq!(view.file, path);
        assert_eq!((view.elements(), view.byte_len()), (6, 6 * dtype.size()));
        assert_eq!(*view.bytes(), data[begin..begin + view.byte_len()]);
        assert_eq!(checkpoint.get(view.name).unwrap().bytes(), view.bytes());
        begin += view.byte_len();
    }
    assert!(checkpoint.get("t").is_none());

    // Released pages are read again.
    checkpoint.release("t.F64");
    checkpoint.release("t");
    assert_eq!(*checkpoint.get("t.F64").unwrap().bytes(), data[..48]);
}

#[test]
fn empty_tensors_scalars_and_empty_files_are_valid() {
    let header = r#"{"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},
        "s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "e2":{"dtype":"I8","shape":[3,0],"data_offsets":[4,4]}}"#;
    let header = parse_header(&safetensors(header, &[0; 4])).unwrap();
    let elements: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.bytes.len())).collect();
    assert_eq!(elements, [("e", 0), ("s", 4), ("e2", 0)]);
    assert!(parse_header(&safetensors("{}", &[])).unwrap().tensors.is_empty());
}

fn error(header: &str, data: usize) -> HeaderError {
    parse_header(&safetensors(header, &vec![0; data])).unwrap_err()
}

#[test]
fn damaged_lengths_are_named() {
    assert!(matches!(parse_header(b"abc"), Err(HeaderError::TooShort { len: 3 })));
    for declared in [u64::MAX, MAX_HEADER_LEN + 1] {
        let file = [&declared.to_le_bytes()[..], b"{}"].concat();
        assert!(
            matches!(parse_header(&file), Err(HeaderError::HeaderTooLong { declared: d }) if d == declared)
        );
    }
    let file = [&100u64.to_le_bytes()[..], b"{}"].concat();
    let truncated = parse_header(&file).unwrap_err();
    assert!(matches!(truncated, HeaderError::HeaderTruncated { declared: 100, available: 2 }), "{truncated}");
    let file = [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat();
    assert!(matches!(parse_header(&file), Err(HeaderError::NotUtf8 { at: 10 })));
}

#[test]
fn damaged_headers_are_named() {
    for (header, data, expected) in [
        ("", 0, "EOF while parsing a value"),
        ("{", 0, "EOF while parsing an object"),
        ("[]", 0, "expected an object from tensor names"),
        (r#"{"t":1}"#, 0, "invalid type: integer `1`"),
        (r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "invalid value: integer `-1`"),
        (r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4, "invalid length 1"),
        (r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 4, "line 1 column"),
        (r#"{"t":{"dtype":"F32","shape":[1]}}"#, 4, "missing field `data_offsets`"),
        (
            r#"{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "duplicate field `dtype`",
        ),
        (r#"{"t":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#, 4, "line 1 column"),
        (r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, 4, "unknown field `x`"),
        (r#"{"__metadata__":{"a":1}}"#, 0, "invalid type: integer `1`"),
        ("{}\0", 0, "trailing characters"),
        (
            r#"{"t":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#,
            8,
            r#"tensor "t" has type "U64", expected F64"#,
        ),
        (r#"{"t":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}"#, 4, r#"tensor "t" has type "f32""#),
        (
            r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            4,
            r#"tensor "t" with type F32 and shape [4294967296, 4294967296] is too large to address"#,
        ),
        (
            r#"{"t":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,4]}}"#,
            4,
            r#"tensor "t" with type F64 and shape [2305843009213693952] is too large to address"#,
        ),
        (
            r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            r#"tensor "t" with type F32 and shape [2] needs 8 bytes, its data_offsets hold 4"#,
        ),
        (
            r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            4,
            r#"tensor "t" has data_offsets [4, 0], which end before they begin"#,
        ),
        (
            r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            7,
            r#"tensor "t" ends at byte 8 of the data, found 7 bytes of data; hint: the file is truncated, fetch it again"#,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#,
            7,
            r#"tensors "a" and "b" overlap: one ends at 4 and the other begins at 3"#,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}}"#,
            9,
            r#"1 bytes in front of tensor "b" belong to no tensor: expected it at 4, found it at 5"#,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
            9,
            "5 bytes behind the last tensor belong to no tensor",
        ),
        ("{}", 1, "1 bytes behind the last tensor belong to no tensor"),
        (
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
            r#"tensor "a" appears twice in the header"#,
        ),
        (r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, r#"metadata key "k" appears twice"#),
        (r#"{"__metadata__":{"k":"1"},"__metadata__":{"k":"2"}}"#, 0, r#"metadata key "k" appears twice"#),
    ] {
        let message = error(header, data).to_string();
        assert!(message.contains(expected), "{header}\n  expected: {expected}\n  found:    {message}");
    }
    let rank = format!(r#"{{"t":{{"dtype":"U8","shape":{:?},"data_offsets":[0,1]}}}}"#, vec![1; 65]);
    assert!(matches!(error(&rank, 1), HeaderError::Rank { rank: 65, .. }));
    let deep = format!(r#"{{"t":{}"#, "[".repeat(100_000));
    assert!(matches!(error(&deep, 0), HeaderError::Json { .. }));
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path).unwrap_err().to_string()
    };
    let good = safetensors(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
    let truncated = open(&good[..good.len() - 1]);
    assert!(
        truncated.starts_with(&format!("{}: tensor \"t\" ends at byte 8", path.display())),
        "{truncated}"
    );
    for len in 1..good.len() {
        assert!(open(&good[..len]).contains("model.safetensors"), "{len}");
    }
    assert!(open(b"").ends_with("found an empty file"));
    assert!(open(b"GGUF....").contains("GGUF file; hint:"));
    assert!(open(b"<!DOCTYPE html>").contains("download may have failed"));
    assert!(open(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(open(b"12345678901").contains("11 bytes that begin with [31, 32"));

    let missing = Checkpoint::open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("none"));
}

#[test]
fn nan_is_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let data = [1f32, f32::NAN, 2.0, f32::INFINITY].map(f32::to_le_bytes).concat();
    fs::write(&path, safetensors(r#"{"w.x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, &data))
        .unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let message = check_finite(&checkpoint.get("w.x").unwrap()).unwrap_err().to_string();
    assert!(
        message.contains(
            r#"tensor "w.x" (F32 [2, 2]) holds 1 NaN and 1 infinite of 4 elements, the first at [0, 1]"#
        ),
        "{message}"
    );
}
