//! A model folder that is changed and compiled.

use super::*;

/// A copy of the demo model that a test may change, and an empty folder for what comes out.
pub struct Model(pub TempDir);

impl Model {
    pub fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let model = Model(folder);
        std::fs::create_dir(model.model()).unwrap();
        std::fs::create_dir(model.out()).unwrap();
        for name in [
            "dit.safetensors",
            "text_encoder.safetensors",
            "vae.safetensors",
            "tokenizer.json",
            "config.json",
        ] {
            std::fs::copy(demo::folder().join(name), model.path(name)).unwrap();
        }
        model
    }

    pub fn model(&self) -> PathBuf {
        self.0.path().join("model")
    }

    pub fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.model().join(name)
    }

    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = read(&self.path(name));
        change(&mut tensors);
        write(&self.path(name), &tensors);
    }

    /// A compile of the folder, into the other one.
    pub fn choices(&self) -> Choices {
        Choices {
            model: Some(self.model()),
            output: Some(self.out().join("engine.plan")),
            emit_onnx: Some(self.out().join("onnx")),
            ..Choices::default()
        }
    }

    /// The same with the networks beside the transformer named.
    pub fn networks(&self) -> Choices {
        Choices {
            model: None,
            text_encoder: Some(self.path("text_encoder.safetensors")),
            vae: Some(self.path("vae.safetensors")),
            tokenizer: Some(self.path("tokenizer.json")),
            ..self.choices()
        }
    }

    /// The compile ends with this code, says all of this with its hint, and leaves nothing behind.
    #[track_caller]
    pub fn refused(&self, choices: &Choices, code: u8, says: &[&str]) {
        let error: CompileError = match compile(choices, &mut NoProgress) {
            Err(error) => error,
            Ok(report) => panic!("{says:?} was not said; compiled with {:?}", report.choices),
        };
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{text}");
        for part in says {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        let left: Vec<_> = std::fs::read_dir(self.out()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Two image-to-video experts in place of the text-to-video transformer: it takes 20 channels of condition.
    pub fn with_experts(self) -> Self {
        std::fs::remove_file(self.path("config.json")).unwrap();
        std::fs::remove_file(self.path("dit.safetensors")).unwrap();
        let high = image_to_video(demo_dit());
        write(&self.path("high.safetensors"), &high);
        write(&self.path("low.safetensors"), &changed(&high));
        self
    }
}

pub fn image_to_video(mut tensors: Tensors) -> Tensors {
    let (dtype, shape, bytes) = &tensors["patch_embedding.weight"];
    let row = shape[1] * 2;
    let more = vec![0; 20 * 4 * 2];
    let wide = bytes.chunks(row).flat_map(|row| [row, &more].concat()).collect();
    let wide = (*dtype, vec![shape[0], shape[1] + 20 * 4], wide);
    tensors.insert("patch_embedding.weight".to_string(), wide);
    tensors
}
