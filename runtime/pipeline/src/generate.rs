//! From prompt to frames.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use turbo_engine_file::{BackendKind, EngineFile, Manifest, Sampler, machine};
use turbo_media::Frame;
use turbo_sampler::NoiseSource;
use turbo_text::Tokenizer;

use crate::backend::{Runtime, Tensor};
use crate::bench::{self, BenchReport, BenchRequest};
use crate::executor::{Denoise, Executor};
use crate::onnx::Onnx;
use crate::run::Run;
use crate::tensorrt::{Device, TensorRt};
use crate::{EmbeddingCache, Report, RunError};

/// An opened engine file and what executes it.
pub struct Engine {
    file: Arc<EngineFile>,
    backend: Backend,
    tokenizer: Tokenizer,
}

/// What executes engine files.
pub enum Backend {
    /// ONNX Runtime on the CPU.
    Onnx(Runtime),
    /// TensorRT on a GPU.
    TensorRt(Device),
}

impl From<Runtime> for Backend {
    fn from(runtime: Runtime) -> Self {
        Backend::Onnx(runtime)
    }
}

impl From<Device> for Backend {
    fn from(device: Device) -> Self {
        Backend::TensorRt(device)
    }
}

/// What to generate.
pub struct Request {
    /// Which of the engine file's videos: an index into the manifest's.
    pub video: usize,
    /// Text prompt, as the user typed it.
    pub prompt: String,
    /// First frame, for image-to-video engines.
    pub image: Option<Frame>,
    /// Seed that the noise was made from; reported only.
    pub seed: u64,
    /// Steps, 1 to 4; the engine file's default when absent.
    pub steps: Option<u32>,
    /// SDE or ODE; the engine file's default when absent.
    pub sampler: Option<Sampler>,
    /// First noise level; the engine file's default when absent.
    pub sigma_max: Option<f64>,
    /// Initial noise and that of each step.
    pub noise: Box<dyn NoiseSource>,
    /// Rounding at the network's inputs.
    pub precision: Precision,
    /// Where prompt embeddings are kept, if anywhere.
    pub cache: Option<EmbeddingCache>,
}

/// Rounding of latent, time step, text and condition where they enter the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To bf16, as deployed: the models were distilled with it.
    Bf16,
    /// None: for comparison with f32 references.
    F32,
}

/// Where a run reports what it is doing, and learns that it should stop.
pub trait Events {
    /// A part begins, of `units` equal units when known.
    fn begin(&mut self, part: &str, units: Option<u64>);
    /// One unit is done.
    fn advance(&mut self);
    /// Something the user should know.
    fn warn(&mut self, message: &str);
    /// Set when the user asks to stop.
    fn cancelled(&self) -> Arc<AtomicBool>;
}

/// Reports nothing and never stops.
pub struct Silent;

impl Events for Silent {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self) {}
    fn warn(&mut self, _: &str) {}
    fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::default()
    }
}

impl Engine {
    /// Pairs an engine file with a backend.
    ///
    /// # Errors
    /// A backend, version or op version that the file needs and this machine does not have; a tokenizer that
    /// cannot be read.
    pub fn new(file: EngineFile, backend: impl Into<Backend>) -> Result<Engine, RunError> {
        let backend = backend.into();
        let manifest = file.manifest();
        match (&backend, manifest.backend.kind) {
            (Backend::Onnx(runtime), BackendKind::OnnxRuntimeCpu) => check_onnx(manifest, runtime)?,
            (Backend::TensorRt(device), BackendKind::TensorRt) => device.check(manifest)?,
            (_, kind) => {
                let what = format!("the engine file is made for another backend: {kind:?}");
                let hint = "open it with the backend that its manifest names".to_string();
                return Err(RunError::Machine { what, hint });
            }
        }
        for op in &manifest.ops {
            let have = turbo_ops::find(&op.name).map(|o| o.version.to_string());
            if have.as_deref() != Some(op.version.as_str()) {
                let found = have.map_or("does not have it".to_string(), |v| format!("has version {v}"));
                return Err(RunError::Machine {
                    what: format!(
                        "the engine file needs {} version {}, this turbo-run {found}",
                        op.name, op.version
                    ),
                    hint: "compile the model again with the turbo-compile of this version".to_string(),
                });
            }
        }
        let text_len = manifest.model.text_len as usize;
        let tokenizer = Tokenizer::from_bytes(file.bytes(&manifest.tokenizer.entry)?, text_len)?;
        Ok(Engine { file: Arc::new(file), backend, tokenizer })
    }

    /// What the engine file says of itself.
    pub fn manifest(&self) -> &Manifest {
        self.file.manifest()
    }

    /// Generates one video and hands its frames over in order, as soon as each is decoded.
    ///
    /// # Errors
    /// Everything in [`RunError`], and whatever `frame` returns.
    pub fn generate(
        &self,
        request: Request,
        events: &mut dyn Events,
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<Report, RunError> {
        let mut run = Run::new(&self.file, request.video, events)?;
        match &self.backend {
            Backend::Onnx(runtime) => self.video(request, &mut run, &mut Onnx::new(runtime), frame),
            Backend::TensorRt(device) => {
                let mut executor = TensorRt::new(device, &run)?;
                self.video(request, &mut run, &mut executor, frame)
            }
        }
    }

    /// Times whole forwards of stages over random inputs, the states of streaming ones carried from run to run. On a GPU
    /// the L2 cache is cleared between runs, and a transformer runs as one CUDA graph, as it does for a video.
    ///
    /// # Errors
    /// A video or stage that the engine file does not have, too little memory, a failing backend, or the wish to stop,
    /// which is looked for between two runs.
    pub fn bench(&self, request: &BenchRequest, events: &mut dyn Events) -> Result<BenchReport, RunError> {
        let mut run = Run::new(&self.file, request.video, events)?;
        match &self.backend {
            Backend::Onnx(runtime) => bench::run(request, &mut run, &mut Onnx::new(runtime)),
            Backend::TensorRt(device) => {
                let mut bencher = TensorRt::new(device, &run)?;
                bench::run(request, &mut run, &mut bencher)
            }
        }
    }

    fn video(
        &self,
        mut request: Request,
        run: &mut Run<'_>,
        executor: &mut dyn Executor,
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<Report, RunError> {
        let start = Instant::now();
        let manifest = self.manifest();
        let sampling = &manifest.sampling;
        let steps = request.steps.unwrap_or(sampling.steps) as usize;
        let schedule = turbo_sampler::schedule(steps, request.sigma_max.unwrap_or(sampling.sigma_max))?;
        check_image(manifest.model.in_channels > manifest.model.out_channels, request.image.is_some())?;

        let encoded = self.tokenizer.encode(&request.prompt)?;
        if let Some(cut) = &encoded.cut {
            let message = format!(
                "the prompt is {} tokens too long for the model's {}; cut off: \"{}\"",
                cut.tokens, manifest.model.text_len, cut.text
            );
            run.events.warn(&message);
        }
        run.lap("tokenise");
        let mut report = Report {
            prompt: encoded.cleaned.clone(),
            tokens: encoded.tokens,
            cut: encoded.cut.as_ref().map(|cut| cut.text.clone()),
            size: format!("{}x{}", run.video().width, run.video().height),
            seed: request.seed,
            steps,
            ..Report::default()
        };
        let (mut text, cached) = self.embed(run, executor, &encoded, request.cache.as_ref())?;
        report.cached_embedding = cached;
        let condition = match &request.image {
            Some(image) => Some(self.condition(run, executor, image, request.precision)?),
            None => None,
        };
        round(&mut text, request.precision);

        let work = Denoise {
            text: &text,
            condition: condition.as_ref(),
            schedule: &schedule,
            sampler: request.sampler.unwrap_or(sampling.sampler),
            precision: request.precision,
        };
        let latent = executor.denoise(run, &work, &mut *request.noise)?;
        report.frames = executor.decode(run, &latent, frame)?;
        report.latent = latent;
        report.parts = run.take_parts();
        report.total_seconds = start.elapsed().as_secs_f64();
        report.peak_memory_bytes = machine::peak_memory();
        report.peak_gpu_memory_bytes = executor.peak_memory();
        Ok(report)
    }

    /// Text embedding `[1, text_len, text_dim]`, and whether it came from the cache.
    fn embed(
        &self,
        run: &mut Run<'_>,
        executor: &mut dyn Executor,
        encoded: &turbo_text::Encoded,
        cache: Option<&EmbeddingCache>,
    ) -> Result<(Tensor, bool), RunError> {
        let model = &self.manifest().model;
        let shape = vec![1, model.text_len as usize, model.text_dim as usize];
        let key = cache.map(|cache| (cache, embedding_key(run, &encoded.ids)));
        let elements = shape.iter().product();
        if let Some(found) = key.as_ref().and_then(|(cache, key)| cache.get(key, elements)) {
            run.lap("text encoder (cached)");
            return Ok((Tensor::f32(shape, found), true));
        }
        let ids = Tensor::i64(vec![1, shape[1]], encoded.ids.clone());
        let mask = encoded.mask.iter().map(|&m| m as f32).collect();
        let mask = Tensor::f32(vec![1, shape[1]], mask);
        let text = executor.encode_text(run, &ids, &mask)?;
        if let Some((cache, key)) = key {
            cache.put(&key, text.as_f32());
        }
        Ok((text, false))
    }

    /// Condition `[1, 4 + c, T, H, W]` of image-to-video: a mask of the first frame, and the latents of the
    /// image followed by zero frames (upstream `wan2.2_i2v_infer.py`).
    fn condition(
        &self,
        run: &mut Run<'_>,
        executor: &mut dyn Executor,
        image: &Frame,
        precision: Precision,
    ) -> Result<Tensor, RunError> {
        let (model, video) = (&run.manifest().model, run.video());
        let (width, height) = (video.width as usize, video.height as usize);
        let [c, t, h, w] = video.latent.map(|d| d as usize);
        let pixels = turbo_media::to_tensor(&turbo_media::resize(image, width, height)?)?;
        let mut latents = vec![0.0; c * t * h * w];
        executor.encode_image(run, pixels, &mut |frame, latent| {
            for channel in 0..c {
                let from = &latent[channel * h * w..(channel + 1) * h * w];
                latents[(channel * t + frame) * h * w..][..h * w].copy_from_slice(from);
            }
        })?;
        let mask_channels = (model.in_channels - model.out_channels) as usize - c;
        let mut condition = Vec::with_capacity((mask_channels + c) * t * h * w);
        for _ in 0..mask_channels {
            condition.extend((0..t * h * w).map(|i| if i < h * w { 1.0 } else { 0.0 }));
        }
        condition.extend(latents);
        let mut condition = Tensor::f32(vec![1, mask_channels + c, t, h, w], condition);
        round(&mut condition, precision);
        Ok(condition)
    }
}

/// Of the text encoder and the prompt, so that every video of an engine file takes the same embedding.
fn embedding_key(run: &Run<'_>, ids: &[i64]) -> String {
    let manifest = run.manifest();
    let stage = manifest.stage("text_encoder", run.index());
    let entries = stage.iter().flat_map(|stage| [&stage.graph].into_iter().chain(&stage.weights));
    let digests: Vec<&str> =
        entries.filter_map(|path| manifest.entry(path)).map(|entry| entry.sha256.as_str()).collect();
    EmbeddingCache::key(&digests, ids)
}

fn check_onnx(manifest: &Manifest, runtime: &Runtime) -> Result<(), RunError> {
    if manifest.backend.accepts(runtime.version()) {
        return Ok(());
    }
    Err(RunError::Machine {
        what: format!(
            "the engine file needs ONNX Runtime {} or newer, found {}",
            manifest.backend.min_version,
            runtime.version()
        ),
        hint: "update ONNX Runtime (pip install --upgrade onnxruntime)".to_string(),
    })
}

fn check_image(is_i2v: bool, given: bool) -> Result<(), RunError> {
    match (is_i2v, given) {
        (true, false) => Err(RunError::usage(
            "this engine file makes videos from an image, and none is given",
            "add --image FILE",
        )),
        (false, true) => Err(RunError::usage(
            "this engine file makes videos from text alone and cannot use an image",
            "leave --image out, or use an image-to-video engine file",
        )),
        _ => Ok(()),
    }
}

/// Rounds where the deployed scripts do.
pub(crate) fn round(tensor: &mut Tensor, precision: Precision) {
    if precision == Precision::Bf16 {
        tensor.as_f32_mut().iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
}
