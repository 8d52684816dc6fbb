//! The stages of one video on the GPU.
//!
//! Latent, noise, time steps and the sampler's arithmetic stay on the GPU for all steps of an expert. What a step
//! enqueues is captured once and launched as one CUDA graph; the step's times come from a small buffer.

use std::time::Duration;

use turbo_engine_file::Sampler;
use turbo_media::Frame;
use turbo_sampler::{Expert, NoiseSource};
use turbo_trt::{DeviceBuffer, Graph, Stream};

use super::stage::{Buffers, Stage};
use super::{Device, Memory};
use crate::backend::Tensor;
use crate::executor::{Denoise, Executor, latent_frame};
use crate::run::Run;
use crate::{Precision, RunError};

/// How often a step in progress is asked whether it is done.
const POLL: Duration = Duration::from_millis(1);

/// Runs plans in TensorRT.
pub(crate) struct TensorRt<'a> {
    device: &'a Device,
    memory: Memory,
    stream: Stream,
}

/// What the steps of one expert work on.
struct Steps {
    /// They run one after the other; the graph works on their memory.
    parts: Vec<Stage>,
    graph: Graph,
}

/// The state of the sampler on the GPU.
struct Latent {
    /// f64, as on the CPU.
    x: DeviceBuffer,
    noise: DeviceBuffer,
    sampler: turbo_trt::Sampler,
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

    /// The text's keys and values of every block, on the GPU.
    fn context(&mut self, run: &mut Run<'_>, name: &str, text: &Tensor) -> Result<Buffers, RunError> {
        let mut stage = self.load(run, name)?;
        run.events.begin("text context", None);
        stage.upload("text_emb", text.as_f32(), &self.stream)?;
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
        let context = match &expert.context {
            Some(name) => self.context(run, name, work.text)?,
            None => Buffers::new(),
        };
        let mut parts = Vec::new();
        for name in &expert.steps {
            let mut part = self.load(run, name)?;
            for (name, buffer) in &context {
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
            for part in &mut parts {
                part.enqueue(stream)?;
            }
            match work.sampler {
                Sampler::Sde => sampler.sde_step(stream, x, &velocity, noise)?,
                Sampler::Ode => sampler.ode_step(stream, x, &velocity)?,
            }
            Ok::<(), RunError>(())
        })?;
        run.lap("capture a step");
        Ok(Steps { parts, graph })
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
        let schedule = work.schedule;
        let shim = self.device.shim();
        let elements: usize = run.video().latent.iter().map(|&d| d as usize).product();
        let latent = Latent {
            x: DeviceBuffer::new(shim, elements * size_of::<f64>())?,
            noise: DeviceBuffer::new(shim, elements * size_of::<f32>())?,
            sampler: turbo_trt::Sampler::new(shim)?,
        };
        let Latent { x, noise: fresh, sampler } = &latent;
        let (times, steps) = (&schedule.times, schedule.steps());
        sampler.set_times(&self.stream, times[0], 0.0)?;
        self.stream.upload(fresh, &noise.draw(elements)?)?;
        sampler.initial(&self.stream, x, fresh)?;
        let mut current: Option<(Expert, Steps)> = None;
        for step in 0..steps {
            run.check()?;
            let expert = schedule.expert(step, run.manifest().sampling.boundary);
            let mut now = match current.take() {
                Some((loaded, now)) if loaded == expert => now,
                other => {
                    // The expert that is done leaves memory before the next one comes.
                    drop(other);
                    self.steps(run, expert, work, &latent)?
                }
            };
            run.progress("denoising", step, steps);
            let timestep = match work.precision {
                Precision::Bf16 => schedule.deployed_timesteps[step],
                Precision::F32 => schedule.timesteps[step],
            };
            let freq_dim = now.parts[0].shape("time").last().copied().unwrap_or(0);
            now.parts[0].upload("time", &turbo_sampler::time_embedding(timestep, freq_dim), &self.stream)?;
            sampler.set_times(&self.stream, times[step], times[step + 1])?;
            if work.sampler == Sampler::Sde {
                self.stream.upload(fresh, &noise.draw(elements)?)?;
            }
            now.graph.launch(&self.stream)?;
            self.wait(run)?;
            run.events.advance();
            run.lap(format!("step {}", step + 1));
            current = Some((expert, now));
        }
        let mut values = vec![0.0f64; elements];
        self.stream.download(&mut values, x)?;
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
