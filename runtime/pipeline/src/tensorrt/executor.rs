//! The stages of one video on the GPU.
//!
//! Latent, noise, time steps and the sampler's arithmetic stay on the GPU for all steps of an expert. What a step
//! enqueues is captured once and launched as one CUDA graph; the step's times come from a small buffer.

use std::collections::BTreeMap;
use std::time::Duration;

use turbo_engine_file::Sampler;
use turbo_media::Frame;
use turbo_sampler::{Expert, NoiseSource};
use turbo_trt::{DeviceBuffer, Event, Graph, Stream, sampler};

use super::stage::{Ports, Stage};
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
    stage: Stage,
    graph: Graph,
    /// `{t, t_next}`, which the captured step reads.
    times: DeviceBuffer,
    x: DeviceBuffer,
    noise: DeviceBuffer,
}

impl<'a> TensorRt<'a> {
    pub(crate) fn new(device: &'a Device, run: &Run<'_>) -> Result<Self, RunError> {
        let memory = Memory::reserve(device, run.manifest())?;
        Ok(TensorRt { device, memory, stream: device.library().stream()? })
    }

    fn load(&mut self, run: &mut Run<'_>, name: &str) -> Result<Stage, RunError> {
        run.check()?;
        run.events.begin(&format!("loading {name}"), None);
        let stage = Stage::load(self.device, run.file, name, &self.memory, &self.stream)?;
        self.memory.measure(self.device)?;
        run.lap(format!("load {name}"));
        Ok(stage)
    }

    /// Waits for what was enqueued, and gives up waiting for more when the user asks to stop.
    fn wait(&self, run: &Run<'_>) -> Result<(), RunError> {
        let done = Event::record(&self.stream)?;
        while !done.is_done()? {
            std::thread::sleep(POLL);
        }
        run.check()
    }

    /// The text's keys and values of every block, on the GPU.
    fn context(
        &mut self,
        run: &mut Run<'_>,
        name: &str,
        text: &Tensor,
    ) -> Result<BTreeMap<String, DeviceBuffer>, RunError> {
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
        (x, noise): (DeviceBuffer, DeviceBuffer),
    ) -> Result<Steps, RunError> {
        let expert = run.manifest().expert(expert == Expert::Low);
        let context = match &expert.context {
            Some(name) => self.context(run, name, work.text)?,
            None => BTreeMap::new(),
        };
        let mut stage = self.load(run, &expert.step)?;
        for (name, buffer) in context {
            stage.give(&name, buffer)?;
        }
        if let Some(condition) = work.condition {
            stage.upload("condition", condition.as_f32(), &self.stream)?;
        }
        let times = self.device.library().allocate(2 * size_of::<f64>())?;
        // The first run sets things up that a capture must not contain.
        stage.enqueue(&self.stream)?;
        self.stream.synchronize()?;
        let graph = self.stream.capture(|stream| {
            let input = stage.buffer("x")?;
            sampler::input(input, &x, work.precision == Precision::Bf16, stream)?;
            stage.enqueue(stream)?;
            let velocity = stage.buffer("velocity")?;
            match work.sampler {
                Sampler::Sde => sampler::sde(&x, velocity, &noise, &times, stream)?,
                Sampler::Ode => sampler::ode(&x, velocity, &times, stream)?,
            }
            Ok::<(), RunError>(())
        })?;
        run.lap(format!("capture {}", expert.step));
        Ok(Steps { stage, graph, times, x, noise })
    }
}

impl Executor for TensorRt<'_> {
    fn encode_text(&mut self, run: &mut Run<'_>, ids: &Tensor, mask: &Tensor) -> Result<Tensor, RunError> {
        let mut stage = self.load(run, "text_encoder")?;
        run.events.begin("text encoder", None);
        stage.upload("ids", ids.as_i64(), &self.stream)?;
        stage.upload("mask", mask.as_f32(), &self.stream)?;
        stage.enqueue(&self.stream)?;
        let text = stage.download("text_emb", &self.stream)?;
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
        let frames = run.manifest().video.latent[1] as usize;
        let mut state = Ports::new();
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
                put(frame, &stage.download("latent", &self.stream)?);
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
        let manifest = run.manifest();
        let schedule = work.schedule;
        let library = self.device.library();
        let elements: usize = manifest.video.latent.iter().map(|&d| d as usize).product();
        let steps = schedule.steps();
        let bytes = elements * size_of::<f32>();
        let (x, fresh) = (library.allocate(2 * bytes)?, library.allocate(bytes)?);
        let start = library.allocate(2 * size_of::<f64>())?;
        start.upload(&[schedule.times[0], 0.0], &self.stream)?;
        fresh.upload(&noise.draw(elements)?, &self.stream)?;
        sampler::initial(&x, &fresh, &start, &self.stream)?;
        let mut buffers = Some((x, fresh));
        let mut current: Option<(Expert, Steps)> = None;
        for step in 0..steps {
            run.check()?;
            let expert = schedule.expert(step, manifest.sampling.boundary);
            let mut now = match current.take() {
                Some((loaded, now)) if loaded == expert => now,
                other => {
                    // The expert that is done leaves memory before the next one comes.
                    let given = match other {
                        Some((_, Steps { x, noise, .. })) => Some((x, noise)),
                        None => buffers.take(),
                    };
                    let Some(given) = given else {
                        return Err(RunError::Inconsistent("the latent was lost".to_string()));
                    };
                    self.steps(run, expert, work, given)?
                }
            };
            run.progress("denoising", step, steps);
            let timestep = match work.precision {
                Precision::Bf16 => schedule.deployed_timesteps[step],
                Precision::F32 => schedule.timesteps[step],
            };
            let freq_dim = now.stage.shape("time").last().copied().unwrap_or(0);
            let embedding = turbo_sampler::time_embedding(timestep, freq_dim);
            now.stage.upload("time", &embedding, &self.stream)?;
            now.times.upload(&[schedule.times[step], schedule.times[step + 1]], &self.stream)?;
            if work.sampler == Sampler::Sde {
                now.noise.upload(&noise.draw(elements)?, &self.stream)?;
            }
            now.graph.launch(&self.stream)?;
            self.wait(run)?;
            run.events.advance();
            run.lap(format!("step {}", step + 1));
            current = Some((expert, now));
        }
        let Some((_, last)) = current else { return Err(RunError::Inconsistent("no step".to_string())) };
        let mut latent = vec![0.0f64; elements];
        last.x.download(&mut latent, &self.stream)?;
        Ok(latent.iter().map(|&v| v as f32).collect())
    }

    fn decode(
        &mut self,
        run: &mut Run<'_>,
        latent: &[f32],
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<usize, RunError> {
        let video = &run.manifest().video;
        let shape = video.latent.map(|d| d as usize);
        let (width, height) = (video.width as usize, video.height as usize);
        let count = shape[1];
        let mut state = Ports::new();
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
