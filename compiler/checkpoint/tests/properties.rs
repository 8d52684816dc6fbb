//! What must hold for any checkpoint and any damage.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use support::{Pickle, Tensor, torch_entries, zip};
use turbo_checkpoint::safetensors::parse_header;
use turbo_checkpoint::torch::parse_file;
use turbo_checkpoint::{Checkpoint, DType, check_finite};

const TYPES: [(Dtype, DType); 12] = [
    (Dtype::F64, DType::F64),
    (Dtype::F32, DType::F32),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::Bf16),
    (Dtype::F8_E4M3, DType::F8E4M3),
    (Dtype::F8_E5M2, DType::F8E5M2),
    (Dtype::I64, DType::I64),
    (Dtype::I32, DType::I32),
    (Dtype::I16, DType::I16),
    (Dtype::I8, DType::I8),
    (Dtype::U8, DType::U8),
    (Dtype::BOOL, DType::Bool),
];

type Stored = BTreeMap<String, (Dtype, DType, Vec<usize>, Vec<u8>)>;

fn tensors() -> impl Strategy<Value = Stored> {
    let tensor = (select(&TYPES[..]), prop::collection::vec(0usize..5, 0..4), any::<u8>()).prop_map(
        |((theirs, ours), shape, seed)| {
            let len = shape.iter().product::<usize>() * ours.size();
            let data = (0..len).map(|i| seed.wrapping_mul(i as u8).wrapping_add(seed)).collect();
            (theirs, ours, shape, data)
        },
    );
    prop::collection::btree_map("[a-z.\"\\\\é]{1,12}", tensor, 0..6)
}

/// Damage: bytes set to values, then the file cut.
type Damage = (Vec<(Index, u8)>, Option<Index>);

fn damage() -> impl Strategy<Value = Damage> {
    (prop::collection::vec((any::<Index>(), any::<u8>()), 0..4), prop::option::weighted(0.2, any::<Index>()))
}

fn damaged(mut file: Vec<u8>, (bytes, cut): Damage) -> Vec<u8> {
    for (at, value) in bytes {
        let at = at.index(file.len());
        file[at] = value;
    }
    if let Some(cut) = cut {
        file.truncate(cut.index(file.len()));
    }
    file
}

/// Opens the bytes as a file and uses every tensor in every way.
fn use_all(file: &[u8]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    fs::write(&path, file).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        for tensor in checkpoint.tensors() {
            prop_assert_eq!(tensor.bytes().len(), tensor.byte_len());
            prop_assert!(tensor.byte_len() <= file.len());
            let finite = check_finite(&tensor).is_ok();
            if let Ok(values) = tensor.to_f32() {
                // Rounding to f32 can overflow, so only one direction holds for F64.
                let all = values.iter().all(|value| value.is_finite());
                let agrees = if tensor.dtype == DType::F64 { finite || !all } else { finite == all };
                prop_assert!(agrees);
            }
        }
    }
    Ok(())
}

/// A storage longer than its tensor, and a tensor anywhere in it, its axes in any order.
fn strided() -> impl Strategy<Value = (Tensor, Vec<u8>)> {
    (prop::collection::vec(1usize..5, 0..4), 0usize..7, 0usize..9, any::<u64>()).prop_map(
        |(shape, offset, slack, seed)| {
            let mut order: Vec<usize> = (0..shape.len()).collect();
            order.sort_by_key(|&axis| seed.rotate_left(8 * axis as u32) & 0xff);
            let mut strides = vec![0; shape.len()];
            let mut stride = 1 + seed as usize % 2;
            for &axis in &order {
                strides[axis] = stride;
                stride *= shape[axis];
            }
            let numel = offset + stride + slack;
            let data = (0..numel * 2).map(|i| (i as u64 ^ seed) as u8).collect();
            let (numel, offset) = (numel as i64, offset as i64);
            (
                Tensor { class: "torch.ShortStorage", key: "0", numel, offset, shape, strides, dtype: None },
                data,
            )
        },
    )
}

fn torch_bytes(tensor: &Tensor, data: &[u8]) -> Vec<u8> {
    let pickle = Pickle::dict(|p| {
        p.text("x.y").tensor(tensor).text("note").text("é");
    });
    zip(&torch_entries("m", &pickle, &[("0", data)]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn safetensors_round_trip(stored in tensors(), metadata in prop::option::of(prop::collection::hash_map(".{0,5}", ".{0,5}", 1..3))) {
        let views = stored.iter().map(|(name, (theirs, _, shape, data))| {
            (name.clone(), TensorView::new(*theirs, shape.clone(), data).unwrap())
        });
        let file = safetensors::serialize(views, metadata.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, &file).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        prop_assert_eq!(checkpoint.len(), stored.len());
        for (name, (_, dtype, shape, data)) in &stored {
            let view = checkpoint.get(name).unwrap();
            prop_assert_eq!((view.dtype, view.shape), (*dtype, &shape[..]));
            prop_assert_eq!(&*view.bytes(), &data[..]);
        }
        prop_assert_eq!(checkpoint.metadata(), &metadata.unwrap_or_default().into_iter().collect());
        use_all(&file)?;
    }

    /// What is accepted here is accepted by the format's own library, with the same tensors.
    #[test]
    fn damaged_safetensors_agree_with_the_reference_reader(stored in tensors(), damage in damage()) {
        let views = stored.iter().map(|(name, (theirs, _, shape, data))| {
            (name.clone(), TensorView::new(*theirs, shape.clone(), data).unwrap())
        });
        let file = damaged(safetensors::serialize(views, None).unwrap(), damage);
        use_all(&file)?;
        if let Ok(header) = parse_header(&file) {
            let theirs = SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(theirs.len(), header.tensors.len());
            for tensor in header.tensors {
                let view = theirs.tensor(&tensor.name).unwrap();
                prop_assert_eq!((view.shape(), view.data()), (&tensor.shape[..], &file[tensor.bytes]));
            }
        }
    }

    #[test]
    fn torch_round_trip((tensor, data) in strided()) {
        let file = torch_bytes(&tensor, &data);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, &file).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let view = checkpoint.get("x.y").unwrap();
        prop_assert_eq!(view.shape, &tensor.shape[..]);
        let mut expected: Vec<u8> = vec![];
        for flat in 0..view.elements() {
            let (mut rest, mut at) = (flat, tensor.offset as usize);
            for (len, stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
                at += rest % len * stride;
                rest /= len;
            }
            expected.extend(&data[2 * at..2 * at + 2]);
        }
        prop_assert_eq!(&*view.bytes(), &expected[..]);
        prop_assert_eq!(checkpoint.ignored(), ["note"]);
    }

    #[test]
    fn damaged_torch_files_never_panic((tensor, data) in strided(), damage in damage()) {
        let file = damaged(torch_bytes(&tensor, &data), damage);
        use_all(&file)?;
        // The magic that `sniff` looks for may be what was damaged.
        drop(parse_file(&file));
    }

    #[test]
    fn damaged_pickles_never_panic((tensor, data) in strided(), damage in damage()) {
        let pickle = Pickle::dict(|p| {
            p.text("x.y").tensor(&tensor).text("state_dict").op(b"}").text("z").tensor(&tensor).op(b"s");
        });
        let file = zip(&torch_entries("m", &damaged(pickle, damage), &[("0", &data)]));
        use_all(&file)?;
    }

    #[test]
    fn noise_never_panics(file in prop::collection::vec(any::<u8>(), 0..300)) {
        use_all(&file)?;
        drop(parse_header(&file));
        drop(parse_file(&file));
        drop(turbo_checkpoint::torch::parse_pickle(&file));
        drop(turbo_checkpoint::torch::parse_pickle(&[&b"\x80\x02"[..], &file].concat()));
        drop(turbo_checkpoint::index::parse_index(&file));
    }
}
