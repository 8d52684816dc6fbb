//! Seeds steer the fuzzer only as long as they get as far into the readers as they were written to.

use std::fs;
use std::path::Path;

/// Checks that the seeds of `target` called `bad_` are refused and all others accepted.
fn check(target: &str, accepts: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut count = [0, 0];
    for seed in fs::read_dir(folder).expect("a folder of seeds") {
        let path = seed.expect("a seed").path();
        let good = !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"bad_"));
        let accepted = accepts(&fs::read(&path).expect("a readable seed"));
        assert_eq!(accepted, good, "{}: accepted {accepted}; hint: run seeds.py", path.display());
        count[usize::from(good)] += 1;
    }
    assert!(count.iter().all(|&n| n > 0), "{target}: {count:?}");
}

#[test]
fn safetensors_header() {
    check("safetensors_header", |file| turbo_checkpoint::safetensors::parse_header(file).is_ok());
}

#[test]
fn torch_pickle() {
    check("torch_pickle", |pickle| turbo_checkpoint::torch::parse_pickle(pickle).is_ok());
}

#[test]
fn torch_zip() {
    check("torch_zip", |file| turbo_checkpoint::torch::parse_file(file).is_ok());
}

#[test]
fn engine_zip() {
    check("engine_zip", |file| turbo_engine_file::parse(file).is_ok_and(|parsed| parsed.check(file).is_ok()));
}

#[test]
fn manifest() {
    check("manifest", |json| turbo_engine_file::parse_manifest(json).is_ok());
}

/// What CPython's pickler wrote comes out as tensors.
#[test]
fn pickled_tensors_have_their_names() {
    let names = |seed: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/torch_pickle").join(seed);
        let pickle =
            turbo_checkpoint::torch::parse_pickle(&fs::read(path).expect("a seed")).expect("a good seed");
        let tensors =
            pickle.tensors.iter().map(|t| format!("{} {} {:?} {:?}", t.name, t.dtype, t.shape, t.strides));
        (tensors.collect::<Vec<_>>(), pickle.ignored.join(" "))
    };
    for protocol in [2, 4] {
        let (tensors, ignored) = names(&format!("state_dict_{protocol}"));
        assert_eq!(tensors, ["a.weight F32 [2, 3] None", "a.bias F32 [3] None", "t F32 [3, 2] Some([1, 3])"]);
        assert_eq!(ignored, "");
        let (tensors, ignored) = names(&format!("nested_{protocol}"));
        assert_eq!(tensors, ["net.0 BF16 [] None"]);
        assert_eq!(
            ignored,
            "epoch lr big note none optimizer.0.0 optimizer.0.1 optimizer.1.step optimizer.2.m"
        );
    }
    assert_eq!(names("fp8_2").0, ["w F8_E4M3 [2, 2] None"]);
}
