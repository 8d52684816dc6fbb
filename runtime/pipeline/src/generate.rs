//! From prompt to frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use turbo_engine_file::{EngineFile, Manifest, Sampler, machine};
use turbo_media::Frame;
use turbo_sampler::{Expert, NoiseSource};
use turbo_text::Tokenizer;

use crate::backend::Runtime;
use crate::stage::{Loaded, Tensor};
use crate::{EmbeddingCache, Report, RunError, Timing};

/// An opened engine file and the runtime that executes it.
pub struct Engine {
    file: Arc<EngineFile>,
    runtime: Runtime,
    tokenizer: Tokenizer,
}

/// What to generate.
pub struct Request {
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
    /// Pairs an engine file with a runtime.
    ///
    /// # Errors
    /// A backend, runtime version or op version that the file needs and this build does not have; a tokenizer
    /// that cannot be read.
    pub fn new(file: EngineFile, runtime: Runtime) -> Result<Engine, RunError> {
        let manifest = file.manifest();
        if !manifest.backend.accepts(runtime.version()) {
            return Err(RunError::Machine {
                what: format!(
                    "the engine file needs ONNX Runtime {} or newer, found {}",
                    manifest.backend.min_version,
                    runtime.version()
                ),
                hint: "update ONNX Runtime (pip install --upgrade onnxruntime)".to_string(),
            });
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
        Ok(Engine { file: Arc::new(file), runtime, tokenizer })
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
        let cancelled = events.cancelled();
        let parts = Parts { list: Vec::new(), last: Instant::now() };
        Run { engine: self, events, cancelled, parts }.generate(request, frame)
    }
}

/// Wall time split into parts without gaps.
struct Parts {
    list: Vec<Timing>,
    last: Instant,
}

impl Parts {
    fn lap(&mut self, part: impl Into<String>) {
        let now = Instant::now();
        self.list.push(Timing { part: part.into(), seconds: (now - self.last).as_secs_f64() });
        self.last = now;
    }
}

struct Run<'a> {
    engine: &'a Engine,
    events: &'a mut dyn Events,
    cancelled: Arc<AtomicBool>,
    parts: Parts,
}

/// The text side of one expert.
type Context = Vec<(String, Tensor)>;

impl Run<'_> {
    fn generate(
        mut self,
        mut request: Request,
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<Report, RunError> {
        let start = Instant::now();
        let manifest = self.engine.manifest().clone();
        let sampling = &manifest.sampling;
        let steps = request.steps.unwrap_or(sampling.steps) as usize;
        let sampler = request.sampler.unwrap_or(sampling.sampler);
        let schedule = turbo_sampler::schedule(steps, request.sigma_max.unwrap_or(sampling.sigma_max))?;
        let is_i2v = manifest.model.in_channels > manifest.model.out_channels;
        check_image(is_i2v, request.image.is_some())?;

        let encoded = self.engine.tokenizer.encode(&request.prompt)?;
        if let Some(cut) = &encoded.cut {
            let message = format!(
                "the prompt is {} tokens too long for the model's {}; cut off: \"{}\"",
                cut.tokens, manifest.model.text_len, cut.text
            );
            self.events.warn(&message);
        }
        self.parts.lap("tokenise");
        let mut report = Report {
            prompt: encoded.cleaned.clone(),
            tokens: encoded.tokens,
            cut: encoded.cut.as_ref().map(|cut| cut.text.clone()),
            seed: request.seed,
            steps,
            ..Report::default()
        };
        let (mut text, cached) = self.embed(&manifest, &encoded, request.cache.as_ref())?;
        report.cached_embedding = cached;
        let condition = match &request.image {
            Some(image) => Some(self.condition(&manifest, image, request.precision)?),
            None => None,
        };
        round(&mut text, request.precision);

        let latent = self.denoise(&manifest, &mut request, sampler, &schedule, &text, condition.as_ref())?;
        report.frames = self.decode(&manifest, &latent, frame)?;
        report.latent = latent;
        report.parts = self.parts.list;
        report.total_seconds = start.elapsed().as_secs_f64();
        report.peak_memory_bytes = machine::peak_memory();
        Ok(report)
    }

    fn check(&self) -> Result<(), RunError> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(RunError::Interrupted),
            false => Ok(()),
        }
    }

    fn load(&mut self, name: &str) -> Result<Loaded, RunError> {
        self.check()?;
        self.events.begin(&format!("loading {name}"), None);
        let stage = Loaded::new(&self.engine.runtime, &self.engine.file, name, self.cancelled.clone())?;
        self.parts.lap(format!("load {name}"));
        Ok(stage)
    }

    /// Text embedding `[1, text_len, text_dim]`, and whether it came from the cache.
    fn embed(
        &mut self,
        manifest: &Manifest,
        encoded: &turbo_text::Encoded,
        cache: Option<&EmbeddingCache>,
    ) -> Result<(Tensor, bool), RunError> {
        let name = "text_encoder";
        let shape = vec![1, manifest.model.text_len as usize, manifest.model.text_dim as usize];
        let key = cache.map(|cache| (cache, self.embedding_key(manifest, name, &encoded.ids)));
        let elements = shape.iter().product();
        if let Some(found) = key.as_ref().and_then(|(cache, key)| cache.get(key, elements)) {
            self.parts.lap("text encoder (cached)");
            return Ok((Tensor::f32(shape, found), true));
        }
        let mut stage = self.load(name)?;
        self.events.begin("text encoder", None);
        let ids = Tensor::i64(vec![1, shape[1]], encoded.ids.clone());
        let mask = encoded.mask.iter().map(|&m| m as f32).collect();
        let mask = Tensor::f32(vec![1, shape[1]], mask);
        let mut out = stage.run(&[("ids", &ids), ("mask", &mask)])?;
        let text = take(&mut out, "text_emb")?;
        self.parts.lap("text encoder");
        if let Some((cache, key)) = key {
            cache.put(&key, text.as_f32());
        }
        Ok((text, false))
    }

    fn embedding_key(&self, manifest: &Manifest, name: &str, ids: &[i64]) -> String {
        let stage = manifest.stages.iter().find(|stage| stage.name == name);
        let entries: Vec<&String> =
            stage.iter().flat_map(|s| [&s.graph].into_iter().chain(&s.weights)).collect();
        let digest = |path: &&&String| manifest.entries.iter().find(|e| e.path == ***path);
        let digests: Vec<&str> =
            entries.iter().filter_map(|p| digest(&p)).map(|e| e.sha256.as_str()).collect();
        EmbeddingCache::key(&digests, ids)
    }

    /// Condition `[1, 4 + c, T, H, W]` of image-to-video: a mask of the first frame, and the latents of the
    /// image followed by zero frames (upstream `wan2.2_i2v_infer.py`).
    fn condition(
        &mut self,
        manifest: &Manifest,
        image: &Frame,
        precision: Precision,
    ) -> Result<Tensor, RunError> {
        let video = &manifest.video;
        let (width, height) = (video.width as usize, video.height as usize);
        let [c, t, h, w] = video.latent.map(|d| d as usize);
        let pixels = turbo_media::to_tensor(&turbo_media::resize(image, width, height)?)?;
        let mut latents = vec![0.0; c * t * h * w];
        let mut put = |frame: usize, latent: &[f32]| {
            for channel in 0..c {
                let from = &latent[channel * h * w..(channel + 1) * h * w];
                latents[(channel * t + frame) * h * w..][..h * w].copy_from_slice(from);
            }
        };
        let mut first = self.load("vae_encoder_first")?;
        self.events.begin("VAE encoder", Some(t as u64));
        let video_in = Tensor::f32(vec![1, 3, 1, height, width], pixels);
        let mut out = first.run(&[("video", &video_in)])?;
        put(0, take(&mut out, "latent")?.as_f32());
        self.events.advance();
        self.parts.lap("VAE encoder");
        if t > 1 {
            let state = first.into_state();
            let mut rest = self.load("vae_encoder")?.with_state(state);
            let stride = video.vae_stride[0] as usize;
            let black =
                Tensor::f32(vec![1, 3, stride, height, width], vec![0.0; 3 * stride * height * width]);
            for frame in 1..t {
                self.check()?;
                let mut out = rest.run(&[("video", &black)])?;
                put(frame, take(&mut out, "latent")?.as_f32());
                self.events.advance();
            }
            self.parts.lap("VAE encoder");
        }
        let mask_channels = (manifest.model.in_channels - manifest.model.out_channels) as usize - c;
        let mut condition = Vec::with_capacity((mask_channels + c) * t * h * w);
        for _ in 0..mask_channels {
            condition.extend((0..t * h * w).map(|i| if i < h * w { 1.0 } else { 0.0 }));
        }
        condition.extend(latents);
        let mut condition = Tensor::f32(vec![1, mask_channels + c, t, h, w], condition);
        round(&mut condition, precision);
        Ok(condition)
    }

    /// The final latent `[c, T, H, W]`.
    fn denoise(
        &mut self,
        manifest: &Manifest,
        request: &mut Request,
        sampler: Sampler,
        schedule: &turbo_sampler::Schedule,
        text: &Tensor,
        condition: Option<&Tensor>,
    ) -> Result<Vec<f32>, RunError> {
        let shape: Vec<usize> = [1].into_iter().chain(manifest.video.latent).map(|d| d as usize).collect();
        let elements: usize = shape.iter().product();
        let times = &schedule.times;
        let mut x = turbo_sampler::initial(&request.noise.draw(elements)?, times[0]);
        let steps = schedule.steps();
        let mut current: Option<(Expert, Loaded, Context)> = None;
        for step in 0..steps {
            self.check()?;
            let expert = schedule.expert(step, manifest.sampling.boundary);
            let (mut dit, context) = match current.take() {
                Some((loaded, dit, context)) if loaded == expert => (dit, context),
                other => {
                    // The expert that is done leaves memory before the next one comes.
                    drop(other);
                    self.expert(manifest, expert, text)?
                }
            };
            self.events.begin("denoising", Some(steps as u64));
            (0..step).for_each(|_| self.events.advance());
            let mut latent = Tensor::f32(shape.clone(), x.iter().map(|&v| v as f32).collect());
            round(&mut latent, request.precision);
            let timestep = match request.precision {
                Precision::Bf16 => schedule.deployed_timesteps[step],
                Precision::F32 => schedule.timesteps[step],
            };
            let freq_dim = dit.input_shape("time").last().copied().unwrap_or(0);
            let time = Tensor::f32(vec![1, freq_dim], turbo_sampler::time_embedding(timestep, freq_dim));
            let mut inputs: Vec<(&str, &Tensor)> = vec![("x", &latent), ("time", &time)];
            inputs.extend(condition.map(|c| ("condition", c)));
            inputs.extend(context.iter().map(|(name, tensor)| (name.as_str(), tensor)));
            let mut out = dit.run(&inputs)?;
            let velocity = take(&mut out, "velocity")?;
            let (t, next) = (times[step], times[step + 1]);
            match sampler {
                Sampler::Ode => turbo_sampler::ode_step(&mut x, velocity.as_f32(), t, next)?,
                Sampler::Sde => {
                    let noise = request.noise.draw(elements)?;
                    turbo_sampler::sde_step(&mut x, velocity.as_f32(), t, next, &noise)?;
                }
            }
            self.events.advance();
            self.parts.lap(format!("step {}", step + 1));
            current = Some((expert, dit, context));
        }
        Ok(x.iter().map(|&v| v as f32).collect())
    }

    /// Loads an expert and computes its text side.
    fn expert(
        &mut self,
        manifest: &Manifest,
        expert: Expert,
        text: &Tensor,
    ) -> Result<(Loaded, Context), RunError> {
        let experts = &manifest.experts;
        let expert = match expert {
            Expert::High => &experts.high,
            Expert::Low => experts.low.as_ref().unwrap_or(&experts.high),
        };
        let context = match &expert.context {
            Some(name) => {
                let mut stage = self.load(name)?;
                self.events.begin("text context", None);
                let out = stage.run(&[("text_emb", text)])?;
                self.parts.lap(name.clone());
                out
            }
            None => Vec::new(),
        };
        Ok((self.load(&expert.step)?, context))
    }

    /// Decodes one latent frame at a time and hands over the video frames. Gives their number.
    fn decode(
        &mut self,
        manifest: &Manifest,
        latent: &[f32],
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<usize, RunError> {
        let [c, t, h, w] = manifest.video.latent.map(|d| d as usize);
        let (width, height) = (manifest.video.width as usize, manifest.video.height as usize);
        let slice = |index: usize| {
            let plane = |channel: usize| &latent[(channel * t + index) * h * w..][..h * w];
            Tensor::f32(vec![1, c, 1, h, w], (0..c).flat_map(plane).copied().collect())
        };
        let mut frames = 0;
        let mut stage = self.load("vae_decoder_first")?;
        for index in 0..t {
            if index == 1 {
                let state = stage.into_state();
                stage = self.load("vae_decoder")?.with_state(state);
            }
            self.check()?;
            self.events.begin("VAE decoder", Some(t as u64));
            (0..index).for_each(|_| self.events.advance());
            let mut out = stage.run(&[("latent", &slice(index))])?;
            let video = take(&mut out, "video")?;
            let count = video.shape.get(2).copied().unwrap_or(0);
            for picture in turbo_media::frames_from_video_chunk(video.as_f32(), count, height, width)? {
                frame(picture)?;
                frames += 1;
            }
            self.events.advance();
            if index == 0 || index + 1 == t {
                self.parts.lap("VAE decoder");
            }
        }
        Ok(frames)
    }
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

fn take(outputs: &mut Vec<(String, Tensor)>, name: &str) -> Result<Tensor, RunError> {
    match outputs.iter().position(|(found, _)| found == name) {
        Some(index) => Ok(outputs.swap_remove(index).1),
        None => Err(RunError::Inconsistent(format!("a stage gives no output `{name}`"))),
    }
}

fn round(tensor: &mut Tensor, precision: Precision) {
    if precision == Precision::Bf16 {
        tensor.as_f32_mut().iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
}
