//! Variants of the demo checkpoint: whole, damaged, mixed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// One tensor of a safetensors file: type name, shape, bytes.
pub type Tensor = (String, Vec<usize>, Vec<u8>);
/// A safetensors file.
pub type Tensors = BTreeMap<String, Tensor>;

/// `models/demo`.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// A copy of the demo model that a test may change; files are linked where the system can.
pub struct Model(pub tempfile::TempDir);

impl Model {
    pub fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "dit.safetensors",
            "text_encoder.safetensors",
            "vae.safetensors",
            "tokenizer.json",
            "config.json",
        ] {
            std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
        }
        Model(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Rewrites one safetensors file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = read(&self.path(name));
        change(&mut tensors);
        write(&self.path(name), &tensors);
    }

    /// Runs turbo-compile on the folder with more arguments; the engine file goes to `out/engine.plan`.
    pub fn compile(&self, more: &[&str]) -> Run {
        let out = self.path("out");
        std::fs::create_dir_all(&out).unwrap();
        let mut command = command();
        command.arg(self.0.path()).args(["-o", out.join("engine.plan").to_str().unwrap()]).args(more);
        Run { output: command.output().unwrap(), out }
    }
}

/// `turbo-compile`.
pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_turbo-compile"))
}

/// A finished run.
pub struct Run {
    pub output: Output,
    pub out: PathBuf,
}

impl Run {
    pub fn code(&self) -> i32 {
        self.output.status.code().unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn engine(&self) -> PathBuf {
        assert_eq!(self.code(), 0, "{}", self.stderr());
        self.out.join("engine.plan")
    }

    /// The run failed with this code, said all of this, did not panic and left nothing behind.
    #[track_caller]
    pub fn refused(&self, code: i32, says: &[&str]) {
        let text = self.stderr();
        assert_eq!(self.code(), code, "{text}");
        assert!(text.starts_with("error: "), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        for part in says {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        let left: Vec<_> = std::fs::read_dir(&self.out).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let body = &bytes[8 + header..];
    let tensor = |v: &Value| {
        let at = |i: usize| v["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        (v["dtype"].as_str().unwrap().to_string(), shape, body[at(0)..at(1)].to_vec())
    };
    json.iter().filter(|(k, _)| *k != "__metadata__").map(|(k, v)| (k.clone(), tensor(v))).collect()
}

pub fn write(path: &Path, tensors: &Tensors) {
    let mut header = serde_json::Map::new();
    let mut body: Vec<u8> = Vec::new();
    for (name, (dtype, shape, bytes)) in tensors {
        let start = body.len();
        body.extend(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, body.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(body);
    std::fs::write(path, file).unwrap();
}
