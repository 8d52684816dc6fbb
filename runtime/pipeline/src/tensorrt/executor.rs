//! The stages of one video on the GPU.
//!
//! Latent, noise, times, modulation and the sampler's arithmetic stay on the GPU for all steps. What a step of an expert
//! enqueues is captured once and launched as one CUDA graph, which knows by itself which step it is.

use std::time::Duration;

use turbo_engine_file::Sampler;
use turbo_media::Frame;
use turbo_sampler::{Expert, NoiseSource};
use turbo_trt::{DeviceBuffer, Graph, Stream};

use super::stage::{Buffers, Stage};
use super::{Device, Memory};
use crate::backend::Tensor;
use crate::executor::{Denoise, Executor, MODULATION, latent_frame};
use crate::run::Run;
use crate::{Precision, RunError};

/// How often a step in progress is asked whether it is done.
const POLL: Duration = Duration::from_micros(50);

/// Runs plans in TensorRT.
pub(crate) struct TensorRt<'a> {
    device: &'a Device,
    memory: Memory,
    stream: Stream,
}

/// The steps of one expert.
struct Steps {
    graph: Graph,
    /// Its plans, on whose memory the graph works.
    _parts: Vec<Stage>,
}

/// The state of the sampler on the GPU.
struct Latent {
    /// f64, as on the CPU.
    x: DeviceBuffer,
    /// Of all steps; nothing where the sampler takes none.
    noise: DeviceBuffer,
    sampler: turbo_trt::Sampler,
}

impl Latent {
    /// Room for `elements` values, and for noise of each of `noises` steps.
    fn new(stream: &Stream, times: &[f64], elements: usize, noises: usize) -> Result<Latent, RunError> {
        let shim = stream.shim();
        Ok(Latent {
            x: DeviceBuffer::new(shim, elements * size_of::<f64>())?,
            noise: DeviceBuffer::new(shim, noises * elements * size_of::<f32>())?,
            sampler: turbo_trt::Sampler::new(stream, times)?,
        })
    }

    /// The state before the first step, from the first of the noises; the others are the steps'.
    fn start(&self, stream: &Stream, noises: &[Vec<f32>]) -> Result<(), RunError> {
        let Some((first, rest)) = noises.split_first() else {
            return Err(RunError::Inconsistent("there is no noise to start from".to_string()));
        };
        let bytes = size_of_val(&first[..]);
        let fresh = DeviceBuffer::new(stream.shim(), bytes)?;
        stream.upload(&fresh, first)?;
        self.sampler.initial(stream, &self.x, &fresh)?;
        for (i, noise) in rest.iter().enumerate() {
            stream.upload(&self.noise.slice(i * bytes..(i + 1) * bytes)?, noise)?;
        }
        Ok(stream.synchronize()?)
    }
}

impl<'a> TensorRt<'a> {
    pub(crate) fn new(device: &'a Device, run: &Run<'_>) -> Result<Self, RunError> {
        let memory = Memory::reserve(device, run.manifest(), run.index())?;
        Ok(TensorRt { device, memory, stream: Stream::new(device.shim())? })
    }

    pub(crate) fn device(&self) -> &Device {
        self.device
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Loads a stage of the run's video into the memory that stages share.
    pub(crate) fn load(&mut self, run: &mut Run<'_>, name: &str) -> Result<Stage, RunError> {
        run.check()?;
        run.events.begin(&format!("loading {name}"), None);
        let file = run.file;
        let found = run.stage(name)?;
        let plan = file.bytes(&found.graph)?;
        let weights = found.weights.iter().map(|path| file.bytes(path)).collect::<Result<Vec<_>, _>>()?;
        let mut stage = Stage::load(self.device, name, plan, Some(&weights), &found.state, &self.stream)?;
        stage.work_in(self.memory.arena())?;
        self.memory.measure(self.device)?;
        run.lap(format!("load {name}"));
        Ok(stage)
    }

    /// Waits for what was enqueued, and gives up waiting for more when the user asks to stop.
    fn wait(&self, run: &Run<'_>) -> Result<(), RunError> {
        let done = self.stream.record()?;
        while !done.is_done()? {
            std::thread::sleep(POLL);
        }
        run.check()
    }

    /// What does not change from step to step: the text's keys and values of every block, the modulation of all steps.
    fn context(&mut self, run: &mut Run<'_>, name: &str, work: &Denoise<'_>) -> Result<Buffers, RunError> {
        let mut stage = self.load(run, name)?;
        run.events.begin("context", None);
        stage.upload("text_emb", work.text.as_f32(), &self.stream)?;
        stage.upload("times", work.times(&stage.shape("times"))?.as_f32(), &self.stream)?;
        stage.enqueue(&self.stream)?;
        self.wait(run)?;
        run.lap(name);
        Ok(stage.into_outputs())
    }

    /// Loads an expert and captures its step.
    fn steps(
        &mut self,
        run: &mut Run<'_>,
        expert: Expert,
        work: &Denoise<'_>,
        latent: &Latent,
    ) -> Result<Steps, RunError> {
        let expert = run.manifest().expert(expert == Expert::Low);
        let mut given = self.context(run, &expert.context, work)?;
        let missing =
            || RunError::Inconsistent(format!("stage `{}` gives no output `{MODULATION}`", expert.context));
        let modulation = given.remove(MODULATION).ok_or_else(missing)?;
        let mut parts: Vec<Stage> = Vec::new();
        for name in &expert.steps {
            let mut part = self.load(run, name)?;
            // The row of the step, which all parts read.
            if parts.is_empty() {
                given.insert(MODULATION.to_string(), part.buffer(MODULATION)?.clone());
            }
            for (name, buffer) in &given {
                if part.takes(name) {
                    part.give(name, buffer.clone())?;
                }
            }
            part.follow(&parts)?;
            parts.push(part);
        }
        let Some((first, last)) = parts.first().zip(parts.last()) else {
            return Err(RunError::Inconsistent("an expert has no stages".to_string()));
        };
        let (entry, velocity) = (first.buffer("x")?.clone(), last.buffer("velocity")?.clone());
        let row = first.buffer(MODULATION)?.clone();
        if let Some(condition) = work.condition {
            first.upload("condition", condition.as_f32(), &self.stream)?;
        }
        // The first run sets things up that a capture must not contain.
        for part in &mut parts {
            part.enqueue(&self.stream)?;
        }
        self.stream.synchronize()?;
        let graph = self.stream.capture(|stream| {
            let Latent { x, noise, sampler } = latent;
            sampler.input(stream, &entry, x, work.precision == Precision::Bf16)?;
            sampler.row(stream, &row, &modulation)?;
            for part in &mut parts {
                part.enqueue(stream)?;
            }
            match work.sampler {
                Sampler::Sde => sampler.sde_step(stream, x, &velocity, noise)?,
                Sampler::Ode => sampler.ode_step(stream, x, &velocity)?,
            }
            Ok::<(), RunError>(sampler.advance(stream)?)
        })?;
        run.lap("capture a step");
        Ok(Steps { graph, _parts: parts })
    }
}

impl Executor for TensorRt<'_> {
    fn encode_text(&mut self, run: &mut Run<'_>, ids: &Tensor, mask: &Tensor) -> Result<Tensor, RunError> {
        let mut stage = self.load(run, "text_encoder")?;
        run.events.begin("text encoder", None);
        stage.upload("ids", ids.as_i64(), &self.stream)?;
        stage.upload("mask", mask.as_f32(), &self.stream)?;
        stage.enqueue(&self.stream)?;
        let text = stage.download::<f32>("text_emb", &self.stream)?;
        run.check()?;
        run.lap("text encoder");
        Ok(Tensor::f32(stage.shape("text_emb"), text))
    }

    fn encode_image(
        &mut self,
        run: &mut Run<'_>,
        pixels: Vec<f32>,
        put: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        let frames = run.video().latent[1] as usize;
        let mut state = Buffers::new();
        for (name, chunks) in [("vae_encoder_first", 0..1), ("vae_encoder", 1..frames)] {
            if chunks.is_empty() {
                break;
            }
            let mut stage = self.load(run, name)?.with_state(state)?;
            for frame in chunks {
                run.progress("VAE encoder", frame, frames);
                match frame {
                    0 => stage.upload("video", &pixels, &self.stream)?,
                    // Black frames, in [-1, 1] as upstream has them: zeros.
                    _ => stage.clear("video", &self.stream)?,
                }
                stage.enqueue(&self.stream)?;
                put(frame, &stage.download::<f32>("latent", &self.stream)?);
                run.check()?;
            }
            state = stage.into_state();
            run.lap("VAE encoder");
        }
        Ok(())
    }

    fn denoise(
        &mut self,
        run: &mut Run<'_>,
        work: &Denoise<'_>,
        noise: &mut dyn NoiseSource,
    ) -> Result<Vec<f32>, RunError> {
        let (schedule, steps) = (work.schedule, work.schedule.steps());
        let boundary = run.manifest().sampling.boundary;
        let elements: usize = run.video().latent.iter().map(|&d| d as usize).product();
        let fresh = if work.sampler == Sampler::Sde { steps } else { 0 };
        let latent = Latent::new(&self.stream, &schedule.times, elements, fresh)?;
        let first = schedule.expert(0, boundary);
        // All noise is drawn before the first step, by another thread while this one loads.
        let (noises, loaded) = std::thread::scope(|scope| {
            let draw =
                scope.spawn(|| (0..=fresh).map(|_| noise.draw(elements)).collect::<Result<Vec<_>, _>>());
            let loaded = self.steps(run, first, work, &latent);
            (draw.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        let mut current = Some((first, loaded?));
        latent.start(&self.stream, &noises?)?;
        run.lap("noise");
        for step in 0..steps {
            run.check()?;
            let expert = schedule.expert(step, boundary);
            let mut now = match current.take() {
                Some((loaded, now)) if loaded == expert => now,
                other => {
                    // The expert that is done leaves memory before the next one comes.
                    drop(other);
                    self.steps(run, expert, work, &latent)?
                }
            };
            run.progress("denoising", step, steps);
            now.graph.launch(&self.stream)?;
            self.wait(run)?;
            run.events.advance();
            run.lap(format!("step {}", step + 1));
            current = Some((expert, now));
        }
        let mut values = vec![0.0f64; elements];
        self.stream.download(&mut values, &latent.x)?;
        Ok(values.iter().map(|&v| v as f32).collect())
    }

    fn decode(
        &mut self,
        run: &mut Run<'_>,
        latent: &[f32],
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<usize, RunError> {
        let video = run.video();
        let shape = video.latent.map(|d| d as usize);
        let (width, height) = (video.width as usize, video.height as usize);
        let count = shape[1];
        let mut state = Buffers::new();
        let mut frames = 0;
        for (name, chunks) in [("vae_decoder_first", 0..1), ("vae_decoder", 1..count)] {
            if chunks.is_empty() {
                break;
            }
            let mut stage = self.load(run, name)?.with_state(state)?;
            let per_chunk = stage.shape("video").get(2).copied().unwrap_or(0);
            for index in chunks {
                run.progress("VAE decoder", index, count);
                stage.upload("latent", &latent_frame(latent, shape, index), &self.stream)?;
                stage.enqueue(&self.stream)?;
                let video: Vec<f32> = stage.download("video", &self.stream)?;
                run.check()?;
                for picture in turbo_media::frames_from_video_chunk(&video, per_chunk, height, width)? {
                    frame(picture)?;
                    frames += 1;
                }
            }
            state = stage.into_state();
            run.lap("VAE decoder");
        }
        Ok(frames)
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.memory.peak())
    }
}
