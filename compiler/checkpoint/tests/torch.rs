//! PyTorch files, good and bad.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::borrow::Cow;
use std::fs;

use support::{Entry, Pickle, Tensor, torch_entries, torch_file, zip};
use turbo_checkpoint::torch::{PickleError, TorchError, parse_file, parse_pickle};
use turbo_checkpoint::{Checkpoint, DType, Error, check_finite};

fn names(pickle: &[u8]) -> (Vec<String>, Vec<String>) {
    let pickle = parse_pickle(pickle).unwrap_or_else(|error| panic!("{error}"));
    (pickle.tensors.into_iter().map(|tensor| tensor.name).collect(), pickle.ignored)
}

fn one_tensor(tensor: &Tensor) -> Vec<u8> {
    Pickle::dict(|p| {
        p.text("w").tensor(tensor);
    })
}

#[test]
fn a_state_dict_is_mapped_in_place() {
    // As torch.save(model.state_dict()): an OrderedDict with a `_metadata` attribute.
    let mut p = Pickle::new(2);
    p.ordered_dict().op(b"(");
    p.text("a.weight").tensor(&Tensor::whole("torch.FloatStorage", "0", &[2, 3]));
    let transposed =
        Tensor { shape: vec![3, 2], strides: vec![1, 3], ..Tensor::whole("torch.FloatStorage", "0", &[6]) };
    p.text("a.transposed").tensor(&transposed);
    let row = Tensor {
        offset: 3,
        shape: vec![3],
        strides: vec![1],
        ..Tensor::whole("torch.FloatStorage", "0", &[6])
    };
    p.text("a.row").tensor(&row);
    p.text("b").tensor(&Tensor {
        numel: 4,
        dtype: Some("float8_e4m3fn"),
        ..Tensor::whole("torch.storage.UntypedStorage", "1", &[4])
    });
    p.text("scalar").tensor(&Tensor { numel: 1, ..Tensor::whole("torch.BFloat16Storage", "2", &[]) });
    p.text("empty").tensor(&Tensor::whole("torch.LongStorage", "3", &[0, 7]));
    p.op(b"u}").put().text("_metadata").ordered_dict().op(b"sb.");
    let floats: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let file =
        torch_file(&p.bytes, &[("0", &floats), ("1", &[1, 2, 3, 4]), ("2", &[0x80, 0x3f]), ("3", &[])]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    fs::write(&path, &file).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let found: Vec<_> = checkpoint.tensors().map(|t| (t.name, t.dtype, t.shape)).collect();
    assert_eq!(
        found,
        [
            ("a.weight", DType::F32, &[2, 3][..]),
            ("a.transposed", DType::F32, &[3, 2]),
            ("a.row", DType::F32, &[3]),
            ("b", DType::F8E4M3, &[4]),
            ("scalar", DType::Bf16, &[]),
            ("empty", DType::I64, &[0, 7]),
        ]
    );
    let get = |name: &str| checkpoint.get(name).unwrap();
    assert!(matches!(get("a.weight").bytes(), Cow::Borrowed(b) if b == floats));
    assert!(matches!(get("a.transposed").bytes(), Cow::Owned(_)));
    assert!(matches!(get("a.row").bytes(), Cow::Borrowed(_)));
    assert_eq!(get("a.transposed").to_f32().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(get("a.row").to_f32().unwrap(), [3.0, 4.0, 5.0]);
    assert_eq!(*get("b").bytes(), [1, 2, 3, 4]);
    assert_eq!(get("scalar").to_f32().unwrap(), [1.0]);
    assert!(get("empty").bytes().is_empty());
    assert!(checkpoint.tensors().all(|t| check_finite(&t).is_ok()));
    assert!(checkpoint.ignored().is_empty() && checkpoint.metadata().is_empty());
}

#[test]
fn wrapped_and_nested_dicts_give_names() {
    let tensor = Tensor::whole("torch.HalfStorage", "0", &[2]);
    // {"epoch": 3, "state_dict": {"net.x": t}, "optimizer": {"m": [t, 0.5]}}
    let wrapped = Pickle::dict(|p| {
        p.text("epoch").int(3);
        p.text("state_dict").op(b"}(").text("net.x").tensor(&tensor).op(b"u");
        p.text("optimizer").op(b"}(").text("m").op(b"](").tensor(&tensor).op(b"G").op(&[0; 8]).op(b"eu");
    });
    assert_eq!(
        names(&wrapped),
        (vec!["net.x".into()], vec!["epoch".into(), "optimizer.m.0".into(), "optimizer.m.1".into()])
    );

    // {"model": {"module": {"x": t}, "step": None}}
    let twice = Pickle::dict(|p| {
        p.text("model")
            .op(b"}(")
            .text("module")
            .op(b"}(")
            .text("x")
            .tensor(&tensor)
            .op(b"u")
            .text("step")
            .op(b"Nu");
    });
    assert_eq!(names(&twice), (vec!["x".into()], vec!["model.step".into()]));

    // {"model": {"a": t}, "state_dict": {"a": t}}: no single wrapper, so nothing is left out.
    let both = Pickle::dict(|p| {
        for key in ["model", "state_dict"] {
            p.text(key).op(b"}(").text("a").tensor(&tensor).op(b"u");
        }
    });
    assert_eq!(names(&both).0, ["model.a", "state_dict.a"]);

    // {"w": t, "model": {"a": t}}: a tensor beside it means that "model" is a part, not a wrapper.
    let beside = Pickle::dict(|p| {
        p.text("w").tensor(&tensor).text("model").op(b"}(").text("a").tensor(&tensor).op(b"u");
    });
    assert_eq!(names(&beside).0, ["w", "model.a"]);

    // {0: {"a": {1: t}}, "lr": 0.1, "n": None, "b": True, "t": torch.bfloat16, "s": Size([2])}
    let nested = Pickle::dict(|p| {
        p.int(0).op(b"}(").text("a").op(b"}(").int(1).tensor(&tensor).op(b"uu");
        p.text("lr").op(b"G").op(&[0; 8]).text("n").op(b"N").text("b").op(&[0x88]);
        p.text("t")
            .global("torch", "bfloat16")
            .text("s")
            .global("torch", "Size")
            .ints(&[2])
            .op(&[0x85])
            .op(b"R");
    });
    let ignored = ["lr", "n", "b", "t", "s.0"].map(String::from).to_vec();
    assert_eq!(names(&nested), (vec!["0.a.1".into()], ignored));

    let parameter = Pickle::dict(|p| {
        p.text("w").global("torch._utils", "_rebuild_parameter").op(b"(").tensor(&tensor).op(&[0x88]);
        p.ordered_dict().op(b"tR");
    });
    assert_eq!(names(&parameter).0, ["w"]);
}

#[test]
fn protocols_4_and_5_are_read() {
    for protocol in [4, 5] {
        let mut p = Pickle::new(protocol);
        let short = |p: &mut Pickle, text: &str| {
            p.op(&[0x8c, text.len() as u8]).op(text.as_bytes()).op(&[0x94]);
        };
        p.op(&[0x95]).op(&20u64.to_le_bytes()).op(&[b'}', 0x94]);
        short(&mut p, "w");
        short(&mut p, "torch._utils");
        short(&mut p, "_rebuild_tensor_v2");
        p.op(&[0x93, 0x94, b'(', b'(']);
        short(&mut p, "storage");
        short(&mut p, "torch");
        short(&mut p, "CharStorage");
        p.op(&[0x93, 0x94]);
        short(&mut p, "0");
        short(&mut p, "cpu");
        p.op(b"K\x06t\x94QK\x00K\x02K\x03\x86\x94K\x03K\x01\x86\x94\x89");
        short(&mut p, "collections");
        short(&mut p, "OrderedDict");
        p.op(&[0x93, 0x94]).op(b")R\x94t\x94R\x94s.");
        let pickle = parse_pickle(&p.bytes).unwrap();
        let tensor = &pickle.tensors[0];
        assert_eq!((tensor.name.as_str(), tensor.dtype, &tensor.shape[..]), ("w", DType::I8, &[2, 3][..]));
    }
}

#[test]
fn nothing_is_ever_called() {
    let refused = |pickle: &[u8]| match parse_pickle(pickle) {
        Err(TorchError::Pickle(error @ PickleError::Refused { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    // The classic: os.system("echo"), in every way a pickle can name it.
    let message = refused(b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R.");
    assert!(message.starts_with("pickle refuses to call os.system at byte 2:"), "{message}");
    assert!(refused(b"\x80\x02(X\x04\0\0\0echoios\nsystem\n.").contains("os.system at byte 12"));
    assert!(refused(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.").contains("os.system at byte 16"));
    assert!(refused(b"\x80\x02c__builtin__\neval\n.").contains("__builtin__.eval"));
    assert!(refused(b"\x80\x02ctorch\nload\n.").contains("torch.load"));
    assert!(refused(b"\x80\x02ca\x07\x1b[31m\nb\n.").contains("a\\u{7}\\u{1b}[31m.b"));
    let long = [&b"\x80\x02c"[..], &b"x".repeat(10_000), b"\nb\n."].concat();
    assert!(refused(&long).len() < 400);
    // Deep inside an otherwise good checkpoint.
    let inner = Pickle::dict(|p| {
        p.text("w").tensor(&Tensor::whole("torch.HalfStorage", "0", &[2])).text("x").global("os", "system");
    });
    assert!(refused(&inner).contains("os.system"));

    // Allowed names do only what they are for.
    for (pickle, expected) in [
        (&b"\x80\x02ctorch\nFloatStorage\n)R."[..], "a storage class is never called"),
        (b"\x80\x02ctorch\nbfloat16\n)R.", "a name that can be called"),
        (b"\x80\x02ctorch\nSize\n)R.", "the arguments that torch.save writes"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "the arguments that torch.save writes"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "a tuple"),
        (b"\x80\x02}}R.", "an allowed name to call"),
        (b"\x80\x02X\x01\0\0\0aQ.", "a tuple"),
        (b"\x80\x02)Q.", "a storage id"),
        (b"\x80\x02]}b.", "a dict to set attributes of"),
    ] {
        let message = parse_pickle(pickle).unwrap_err().to_string();
        assert!(message.contains(expected), "{pickle:?}: {message}");
    }
    for op in [b'o', 0x92, 0x82, 0x8f, 0x97, b'P', b'I', b'S', b'd', b'g', 0xff] {
        let found = parse_pickle(&[0x80, 2, op, b'.']).unwrap_err();
        assert!(
            matches!(found, TorchError::Pickle(PickleError::Instruction { op: o, at: 2 }) if o == op),
            "{found}"
        );
    }
}

#[test]
fn malformed_pickles_are_errors() {
    for (pickle, expected) in [
        (&b""[..], "ends at byte 0"),
        (b"\x80", "ends at byte 1"),
        (b"\x80\x06.", "protocol 6"),
        (b"\x80\x01.", "protocol 1"),
        (b"(dp0\n.", "protocol 0"),
        (b"\x80\x02", "ends at byte 2"),
        (b"\x80\x02.", "more values"),
        (b"\x80\x02}K", "ends at byte 4"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "ends at byte 10"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc", "ends at byte 14"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "ends at byte 12"),
        (b"\x80\x02X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x02cos", "ends at byte 5"),
        (b"\x80\x02t.", "a mark"),
        (b"\x80\x02}(s.", "more values"),
        (b"\x80\x02}(K\x01u.", "a value for every key"),
        (b"\x80\x02K\x01K\x02a.", "an object"),
        (b"\x80\x02}K\x02a.", "a list to append to"),
        (b"\x80\x02]K\x01K\x02s.", "a dict to fill"),
        (b"\x80\x02h\x07.", "a memo entry"),
        (b"\x80\x02}}.", "nothing behind or beside"),
        (b"\x80\x02}.}", "nothing behind or beside"),
        (b"\x80\x02K\x01.", "an integer, expected a dict"),
        (b"\x80\x02].", "a list, expected a dict"),
        (b"\x80\x02}NK\x01s.", "is None, a float or bytes, expected text or an integer"),
    ] {
        let message = parse_pickle(pickle).unwrap_err().to_string();
        assert!(message.contains(expected), "{pickle:?}: {message}");
    }
}

#[test]
fn hostile_pickles_stay_small() {
    let error = |pickle: &[u8]| parse_pickle(pickle).unwrap_err();
    let limit = |pickle: &[u8], expected: &str| match error(pickle) {
        TorchError::Pickle(PickleError::Limit { what, .. }) => assert_eq!(what, expected),
        other => panic!("{other}"),
    };
    limit(&[&b"\x80\x02"[..], &b"N".repeat(2 << 20)].concat(), "values on the stack");
    limit(&[&b"\x80\x02"[..], &b"N0".repeat(3 << 20)].concat(), "steps");
    let puts: Vec<u8> = (0..(1u32 << 20) + 1).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
    limit(&[&b"\x80\x02N"[..], &puts].concat(), "memo entries");
    // One list of 1000 pairs, copied 100 000 times by name.
    let pairs =
        [&b"\x80\x02](NN\x86q\x01"[..], &b"h\x01".repeat(999), b"eq\x00ccollections\nOrderedDict\nq\x02"]
            .concat();
    limit(&[&pairs[..], &b"h\x02h\x00\x85R0".repeat(100_000)].concat(), "steps");
    let wide =
        Tensor { shape: vec![1; 65], strides: vec![1; 65], ..Tensor::whole("torch.HalfStorage", "0", &[1]) };
    limit(&one_tensor(&wide), "axes of a tensor");

    // Dicts that hold each other's copies: 2^60 leaves from 60 dicts.
    let mut laughs = Pickle::new(2);
    let (store, fetch) = (b"r\0\0\x01\0", b"j\0\0\x01\0");
    laughs.op(b"}").text("x").op(b"Ns").op(store).op(b"0");
    for _ in 0..60 {
        laughs.op(b"}(").text("a").op(fetch).text("b").op(fetch).op(b"u").op(store).op(b"0");
    }
    laughs.op(fetch).op(b".");
    assert!(matches!(error(&laughs.bytes), TorchError::TooManyEntries));

    // A dict that holds itself.
    let cycle = b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.";
    assert!(matches!(error(cycle), TorchError::TooDeep));
    let wrapper = b"\x80\x02}q\x00X\x05\0\0\0modelh\x00s.";
    parse_pickle(wrapper).unwrap_err();
}

#[test]
fn tensors_stay_inside_their_storage() {
    let base = Tensor::whole("torch.FloatStorage", "0", &[2, 3]);
    let error = |tensor: Tensor| parse_pickle(&one_tensor(&tensor)).unwrap_err();
    for bad in [
        Tensor { offset: 1, ..base.clone() },
        Tensor { offset: i64::MAX, ..base.clone() },
        Tensor { strides: vec![4, 1], ..base.clone() },
        Tensor { strides: vec![usize::MAX >> 1, 1], ..base.clone() },
        Tensor { shape: vec![1 << 40, 1 << 40], ..base.clone() },
        Tensor { numel: 5, ..base.clone() },
        Tensor { numel: 0, ..base.clone() },
        Tensor { numel: i64::MAX, ..base.clone() },
    ] {
        assert!(
            matches!(error(bad.clone()), TorchError::OutsideStorage { .. }),
            "{bad:?}: {}",
            error(bad.clone())
        );
    }
    let expanded = Tensor { shape: vec![1 << 40, 2], strides: vec![0, 1], ..base.clone() };
    assert!(matches!(error(expanded), TorchError::Expanded { .. }));
    for bad in [
        Tensor { offset: -1, ..base.clone() },
        Tensor { numel: -1, ..base.clone() },
        Tensor { strides: vec![1], ..base.clone() },
    ] {
        assert!(matches!(error(bad), TorchError::Pickle(PickleError::Malformed { .. })));
    }
    for class in [
        "torch.ComplexFloatStorage",
        "torch.QInt8Storage",
        "torch.storage.TypedStorage",
        "torch.UntypedStorage",
    ] {
        let found = error(Tensor { class, ..base.clone() });
        assert!(matches!(found, TorchError::UnsupportedDtype { .. }), "{found}");
    }
    let dtype = error(Tensor { dtype: Some("uint16"), ..base.clone() });
    assert_eq!(dtype.to_string(), r#"tensor "w" has type uint16, which is not supported"#);
    let twice = Pickle::dict(|p| {
        p.text("w").tensor(&base).text("w").tensor(&base);
    });
    assert!(matches!(parse_pickle(&twice), Err(TorchError::DuplicateName { .. })));
}

#[test]
fn damaged_archives_are_named() {
    let pickle = one_tensor(&Tensor::whole("torch.FloatStorage", "0", &[2]));
    let entries = torch_entries("archive", &pickle, &[("0", &[0; 8])]);
    parse_file(&zip(&entries)).unwrap();
    let error = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        parse_file(&zip(&entries)).unwrap_err()
    };
    assert!(matches!(error(&|e| drop(e.remove(0))), TorchError::NoPickle));
    assert!(matches!(error(&|e| e[3].name = "b/data.pkl".into()), TorchError::SeveralPickles { .. }));
    assert!(
        matches!(error(&|e| drop(e.remove(2))), TorchError::MissingStorage { tensor, .. } if tensor == "w")
    );
    assert!(matches!(error(&|e| e[2].data.push(0)), TorchError::StorageLength { expected: 8, found: 9, .. }));
    assert!(
        matches!(error(&|e| e[1].data = b"big".to_vec()), TorchError::ByteOrder { found } if found == "big")
    );
    assert!(
        matches!(error(&|e| e.push(e[2].clone())), TorchError::Zip { reason } if reason.contains("same name"))
    );
    assert!(
        matches!(error(&|e| e[2].method = 8), TorchError::Unreadable { how, .. } if how.contains("eflate"))
    );
    assert!(matches!(error(&|e| e[2].flags |= 1), TorchError::Unreadable { how, .. } if how == "encrypted"));
    assert!(matches!(error(&|e| e[0].data.clear()), TorchError::Pickle(PickleError::Truncated { at: 0 })));

    // An entry of the directory that points into another entry's data.
    let mut overlapping = zip(&entries);
    let at = overlapping.windows(6).rposition(|w| w == b"data/0").unwrap();
    overlapping[at - 12..at - 8].fill(0);
    parse_file(&overlapping).unwrap_err();

    // Cut off anywhere, it is an error, and still recognised.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    let good = zip(&entries);
    for len in (0..good.len()).step_by(7) {
        fs::write(&path, &good[..len]).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, Error::Torch { .. }) || len < 50, "{len}: {error}");
        assert!(error.to_string().contains("model.pth"));
    }
}

#[test]
fn the_old_format_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.pth");
    fs::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap();
    let message = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("old.pth: PyTorch's format from before version 1.6")
            && message.contains("hint: re-save")
    );
}
