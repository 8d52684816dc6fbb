//! Folders, indices and shards.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Pickle, Tensor, safetensors, torch_file};
use turbo_checkpoint::index::IndexError;
use turbo_checkpoint::{Checkpoint, Error, Format, Source, scan};

/// A safetensors file of one-byte tensors with these names.
fn shard(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1)
    };
    let header = names.iter().enumerate().map(entry).collect::<Vec<_>>().join(",");
    safetensors(&format!("{{{header}}}"), &vec![7; names.len()])
}

fn pth() -> Vec<u8> {
    let pickle = Pickle::dict(|p| {
        p.text("w").tensor(&Tensor::whole("torch.ByteStorage", "0", &[1]));
    });
    torch_file(&pickle, &[("0", &[7])])
}

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = map.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            let path = folder.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> Result<Checkpoint, Error> {
        Checkpoint::open(&self.path(name))
    }

    /// What `scan` finds, as names relative to the folder.
    fn scan(&self) -> Vec<(Vec<String>, Format)> {
        let name =
            |path: &PathBuf| path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().replace('\\', "/");
        let sources = scan(self.0.path()).unwrap().into_iter();
        sources.map(|source| (source.paths.iter().map(name).collect(), source.format)).collect()
    }
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().map(|tensor| tensor.name).collect()
}

#[test]
fn an_index_opens_its_shards() {
    let folder = Folder::new(&[
        ("m.index.json", &index(&[("a", "one"), ("c", "one"), ("b", "two")])),
        ("one", &shard(&["c", "a"])),
        ("two", &shard(&["b"])),
    ]);
    for path in ["", "m.index.json"] {
        let checkpoint = folder.open(path).unwrap();
        assert_eq!(names(&checkpoint), ["c", "a", "b"]);
        assert_eq!(checkpoint.files(), ["m.index.json", "one", "two"].map(|name| folder.path(name)));
        assert_eq!(checkpoint.get("b").unwrap().file, folder.path("two"));
    }
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let problem = |map: &[(&str, &str)], one: &[&str], two: &[&str]| {
        let folder = Folder::new(&[("m.json", &index(map)), ("one", &shard(one)), ("two", &shard(two))]);
        folder.open("m.json").unwrap_err()
    };
    let index_problem = |error| match error {
        Error::Index { problem, .. } => *problem,
        other => panic!("{other}"),
    };
    let map = [("a", "one"), ("b", "two")];
    let missing = problem(&map, &["a"], &[]);
    assert!(missing.to_string().contains(r#"m.json: tensor "b" should be in "#), "{missing}");
    assert!(matches!(index_problem(missing), IndexError::MissingTensor { .. }));
    assert!(matches!(index_problem(problem(&map, &["a", "c"], &["b"])), IndexError::UnlistedTensor { .. }));
    assert!(matches!(index_problem(problem(&map, &["b"], &["a"])), IndexError::WrongShard { .. }));
    assert!(matches!(problem(&map, &["a", "b"], &["b"]), Error::TensorTwice { tensor, .. } if tensor == "b"));
    let gone = problem(&[("a", "one"), ("b", "gone"), ("c", "gone")], &["a"], &[]).to_string();
    assert!(gone.contains(r#"gone is missing; it should hold 2 tensors, "b" among them; hint"#), "{gone}");
    let traversal = problem(&[("a", "../one")], &[], &[]).to_string();
    assert!(traversal.contains(r#"shard "../one", expected the plain name"#), "{traversal}");

    // A shard that is an index, or no checkpoint at all.
    let folder = Folder::new(&[("m.json", &index(&[("a", "m.json")]))]);
    assert!(matches!(folder.open("m.json"), Err(Error::UnknownFormat { .. })));
    let folder = Folder::new(&[("m.json", &index(&[("a", "one")])), ("one", b"")]);
    assert!(matches!(folder.open("m.json"), Err(Error::UnknownFormat { .. })));
}

#[test]
fn a_folder_is_searched_by_content() {
    let folder = Folder::new(&[
        (
            "transformer/m.index.json",
            &index(&[("a", "x-00001-of-00002.safetensors"), ("b", "x-00002-of-00002.safetensors")]),
        ),
        ("transformer/x-00001-of-00002.safetensors", &shard(&["a"])),
        ("transformer/x-00002-of-00002.safetensors", &shard(&["b"])),
        ("text_encoder/set-00001-of-00002.bin", &shard(&["c"])),
        ("text_encoder/set-00002-of-00002.bin", &shard(&["d"])),
        ("text_encoder/other-00001-of-00001.bin", &shard(&["e"])),
        ("vae.pth", &pth()),
        ("lora.txt", &shard(&["f"])),
        ("config.json", br#"{"dim": 5120}"#),
        ("tokenizer.json", br#"{"model": {"vocab": [["weight_map", 0]]}}"#),
        ("README.md", b"# read me"),
        ("empty", b""),
        (".cache/hidden.safetensors", &shard(&["g"])),
        ("a/b/c/deep", &shard(&["h"])),
        ("a/b/c/d/deeper", &shard(&["i"])),
        ("leftover/pytorch_model.bin.index.json", &index(&[("a", "not-there.bin")])),
        ("leftover/model.safetensors", &shard(&["j"])),
    ]);
    use Format::{Safetensors, SafetensorsIndex, TorchZip};
    let expected = [
        (&["a/b/c/deep"][..], Safetensors),
        (&["leftover/model.safetensors"], Safetensors),
        (&["lora.txt"], Safetensors),
        (&["text_encoder/other-00001-of-00001.bin"], Safetensors),
        (&["text_encoder/set-00001-of-00002.bin", "text_encoder/set-00002-of-00002.bin"], Safetensors),
        (
            &[
                "transformer/m.index.json",
                "transformer/x-00001-of-00002.safetensors",
                "transformer/x-00002-of-00002.safetensors",
            ],
            SafetensorsIndex,
        ),
        (&["vae.pth"], TorchZip),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(paths, format)| (paths.iter().map(|p| p.to_string()).collect(), format))
        .collect();
    assert_eq!(folder.scan(), expected);

    let sources = scan(&folder.path("")).unwrap();
    let opened: Vec<_> = sources.iter().map(|source| Checkpoint::open_source(source).unwrap()).collect();
    let found: Vec<_> = opened.iter().map(names).collect();
    assert_eq!(found, [&["h"][..], &["j"], &["f"], &["e"], &["c", "d"], &["a", "b"], &["w"]]);

    let message = folder.open("").unwrap_err().to_string();
    assert!(
        message.contains("holds 7 checkpoints where one was expected") && message.contains("and 1 more"),
        "{message}"
    );
    assert!(matches!(Folder::new(&[("a.txt", b"x")]).open(""), Err(Error::NothingFound { .. })));
}

#[test]
fn sets_without_index_must_be_whole() {
    let folder = Folder::new(&[
        ("m-00001-of-00004.safetensors", &shard(&["a"])),
        ("m-00003-of-00004.safetensors", &shard(&["b"])),
    ]);
    for path in ["", "m-00001-of-00004.safetensors"] {
        assert!(matches!(folder.open(path), Err(Error::IncompleteSet { total: 4, .. })), "{path}");
    }
    let message = folder.open("").unwrap_err().to_string();
    assert!(
        message.contains("is one of 4 shards and 2 shards between 2 and 4 are not with it; hint"),
        "{message}"
    );

    let twice = Folder::new(&[
        ("m-00001-of-00002.safetensors", &shard(&["a"])),
        ("m-00002-of-00002.safetensors", &shard(&["a"])),
    ]);
    assert!(matches!(twice.open(""), Err(Error::TensorTwice { tensor, .. }) if tensor == "a"));
}

#[test]
fn odd_sources_are_errors_or_empty() {
    let folder = Folder::new(&[("broken.json", br#"{"weight_map": {"#)]);
    assert!(matches!(scan(&folder.path("")), Err(Error::Index { .. })));
    assert!(matches!(scan(Path::new("/no/such/folder")), Err(Error::Io { .. })));
    let nothing = Source { paths: vec![], format: Format::SafetensorsIndex };
    assert!(Checkpoint::open_source(&nothing).unwrap().is_empty());
    let folder_as_file = Source { paths: vec![folder.path("")], format: Format::Safetensors };
    assert!(matches!(Checkpoint::open_source(&folder_as_file), Err(Error::NotAFile { .. })));
}

#[cfg(unix)]
#[test]
fn links_are_followed_once() {
    // The layout of a download cache: blobs, and links to them that carry the names.
    let folder = Folder::new(&[
        ("blobs/1", &shard(&["a"])),
        ("blobs/2", &shard(&["b"])),
        ("snap/m.json", &index(&[("a", "s1"), ("b", "s2")])),
    ]);
    for (blob, link) in [("1", "s1"), ("2", "s2")] {
        std::os::unix::fs::symlink(folder.path("blobs").join(blob), folder.path("snap").join(link)).unwrap();
    }
    std::os::unix::fs::symlink(folder.path(""), folder.path("snap/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path("snap/dangling")).unwrap();
    let found = folder.scan();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, ["snap/m.json", "snap/s1", "snap/s2"]);
    assert_eq!(names(&folder.open("").unwrap()), ["a", "b"]);
}
