//! The stages on the CPU, through ONNX Runtime.

use turbo_engine_file::Sampler;
use turbo_media::Frame;
use turbo_sampler::{Expert, NoiseSource};

use crate::RunError;
use crate::backend::{Runtime, Tensor};
use crate::executor::{Denoise, Executor, FROM, MODULATION, TO, latent_frame};
use crate::generate::round;
use crate::run::Run;
use crate::stage::Loaded;

/// Runs stages in ONNX Runtime.
pub(crate) struct Onnx<'a> {
    runtime: &'a Runtime,
}

/// What one expert is given in every step: keys and values of the text, and the modulation of all steps.
type Context = Vec<(String, Tensor)>;

impl<'a> Onnx<'a> {
    pub(crate) fn new(runtime: &'a Runtime) -> Self {
        Onnx { runtime }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime
    }

    pub(crate) fn load(&self, run: &mut Run<'_>, name: &str) -> Result<Loaded, RunError> {
        run.check()?;
        run.events.begin(&format!("loading {name}"), None);
        let stage = Loaded::new(self.runtime, run.file, run.stage(name)?, run.cancelled.clone())?;
        run.lap(format!("load {name}"));
        Ok(stage)
    }

    /// Loads an expert and computes what does not change from step to step.
    fn expert(
        &self,
        run: &mut Run<'_>,
        expert: Expert,
        work: &Denoise<'_>,
    ) -> Result<(Vec<Loaded>, Context), RunError> {
        let expert = run.manifest().expert(expert == Expert::Low);
        let mut stage = self.load(run, &expert.context)?;
        run.events.begin("context", None);
        let times = work.times(&stage.input_shape("times"))?;
        let context = stage.run(&[("text_emb", work.text), ("times", &times)])?;
        drop(stage);
        run.lap(expert.context.clone());
        let steps = expert.steps.iter().map(|name| self.load(run, name)).collect::<Result<_, _>>()?;
        Ok((steps, context))
    }
}

impl Executor for Onnx<'_> {
    fn encode_text(&mut self, run: &mut Run<'_>, ids: &Tensor, mask: &Tensor) -> Result<Tensor, RunError> {
        let mut stage = self.load(run, "text_encoder")?;
        run.events.begin("text encoder", None);
        let mut out = stage.run(&[("ids", ids), ("mask", mask)])?;
        let text = take(&mut out, "text_emb")?;
        run.lap("text encoder");
        Ok(text)
    }

    fn encode_image(
        &mut self,
        run: &mut Run<'_>,
        pixels: Vec<f32>,
        put: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), RunError> {
        let video = run.video();
        let (width, height) = (video.width as usize, video.height as usize);
        let frames = video.latent[1] as usize;
        let mut first = self.load(run, "vae_encoder_first")?;
        run.events.begin("VAE encoder", Some(frames as u64));
        let picture = Tensor::f32(vec![1, 3, 1, height, width], pixels);
        let mut out = first.run(&[("video", &picture)])?;
        put(0, take(&mut out, "latent")?.as_f32());
        run.events.advance();
        run.lap("VAE encoder");
        if frames == 1 {
            return Ok(());
        }
        let state = first.into_state();
        let mut rest = self.load(run, "vae_encoder")?.with_state(state);
        let stride = video.vae_stride[0] as usize;
        let black = Tensor::f32(vec![1, 3, stride, height, width], vec![0.0; 3 * stride * height * width]);
        for frame in 1..frames {
            run.check()?;
            let mut out = rest.run(&[("video", &black)])?;
            put(frame, take(&mut out, "latent")?.as_f32());
            run.events.advance();
        }
        run.lap("VAE encoder");
        Ok(())
    }

    fn denoise(
        &mut self,
        run: &mut Run<'_>,
        work: &Denoise<'_>,
        noise: &mut dyn NoiseSource,
    ) -> Result<Vec<f32>, RunError> {
        let schedule = work.schedule;
        let shape: Vec<usize> = [1].into_iter().chain(run.video().latent).map(|d| d as usize).collect();
        let elements: usize = shape.iter().product();
        let times = &schedule.times;
        let mut x = turbo_sampler::initial(&noise.draw(elements)?, times[0]);
        let steps = schedule.steps();
        let mut current: Option<(Expert, Vec<Loaded>, Context)> = None;
        for step in 0..steps {
            run.check()?;
            let expert = schedule.expert(step, run.manifest().sampling.boundary);
            let (mut dit, context) = match current.take() {
                Some((loaded, dit, context)) if loaded == expert => (dit, context),
                other => {
                    // The expert that is done leaves memory before the next one comes.
                    drop(other);
                    self.expert(run, expert, work)?
                }
            };
            run.progress("denoising", step, steps);
            let mut latent = Tensor::f32(shape.clone(), x.iter().map(|&v| v as f32).collect());
            round(&mut latent, work.precision);
            let modulation = row(&context, step)?;
            let mut inputs: Vec<(&str, &Tensor)> = vec![("x", &latent), (MODULATION, &modulation)];
            inputs.extend(work.condition.map(|c| ("condition", c)));
            let others = context.iter().filter(|(name, _)| name != MODULATION);
            inputs.extend(others.map(|(name, tensor)| (name.as_str(), tensor)));
            let velocity = forward(&mut dit, &inputs)?;
            let (t, next) = (times[step], times[step + 1]);
            match work.sampler {
                Sampler::Ode => turbo_sampler::ode_step(&mut x, velocity.as_f32(), t, next)?,
                Sampler::Sde => {
                    let noise = noise.draw(elements)?;
                    turbo_sampler::sde_step(&mut x, velocity.as_f32(), t, next, &noise)?;
                }
            }
            run.events.advance();
            run.lap(format!("step {}", step + 1));
            current = Some((expert, dit, context));
        }
        Ok(x.iter().map(|&v| v as f32).collect())
    }

    fn decode(
        &mut self,
        run: &mut Run<'_>,
        latent: &[f32],
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<usize, RunError> {
        let video = run.video();
        let shape @ [c, t, h, w] = video.latent.map(|d| d as usize);
        let (width, height) = (video.width as usize, video.height as usize);
        let mut frames = 0;
        let mut stage = self.load(run, "vae_decoder_first")?;
        for index in 0..t {
            if index == 1 {
                let state = stage.into_state();
                stage = self.load(run, "vae_decoder")?.with_state(state);
            }
            run.check()?;
            run.progress("VAE decoder", index, t);
            let slice = Tensor::f32(vec![1, c, 1, h, w], latent_frame(latent, shape, index));
            let mut out = stage.run(&[("latent", &slice)])?;
            let video = take(&mut out, "video")?;
            let count = video.shape.get(2).copied().unwrap_or(0);
            for picture in turbo_media::frames_from_video_chunk(video.as_f32(), count, height, width)? {
                frame(picture)?;
                frames += 1;
            }
            run.events.advance();
            if index == 0 || index + 1 == t {
                run.lap("VAE decoder");
            }
        }
        Ok(frames)
    }
}

fn take(outputs: &mut Vec<(String, Tensor)>, name: &str) -> Result<Tensor, RunError> {
    match outputs.iter().position(|(found, _)| found == name) {
        Some(index) => Ok(outputs.swap_remove(index).1),
        None => Err(RunError::Inconsistent(format!("a stage gives no output `{name}`"))),
    }
}

/// The modulation of one step.
fn row(context: &[(String, Tensor)], step: usize) -> Result<Tensor, RunError> {
    let missing =
        || RunError::Inconsistent(format!("no context gives a `{MODULATION}` of step {}", step + 1));
    let (_, all) = context.iter().find(|(name, _)| name == MODULATION).ok_or_else(missing)?;
    let rows = all.shape.first().copied().unwrap_or(0);
    let count = all.as_f32().len().checked_div(rows).filter(|&count| count > 0).ok_or_else(missing)?;
    let row = all.as_f32().get(step * count..(step + 1) * count).ok_or_else(missing)?;
    let shape = [&[1], all.shape.get(1..).unwrap_or_default()].concat();
    Ok(Tensor::f32(shape, row.to_vec()))
}

/// Runs the parts of a step one after the other; each is given what it takes of the inputs and of the parts before it.
fn forward(parts: &mut [Loaded], inputs: &[(&str, &Tensor)]) -> Result<Tensor, RunError> {
    let mut given: Vec<(String, Tensor)> = Vec::new();
    for part in parts {
        let known = inputs.iter().copied().chain(given.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        let taken: Vec<(&str, &Tensor)> = known.filter(|(name, _)| part.takes(name)).collect();
        let mut out = part.run(&taken)?;
        if let Some(at) = out.iter().position(|(name, _)| name == "velocity") {
            return Ok(out.swap_remove(at).1);
        }
        for (name, tensor) in out {
            let Some(name) = name.strip_prefix(TO).map(|name| format!("{FROM}{name}")) else { continue };
            given.retain(|(other, _)| *other != name);
            given.push((name, tensor));
        }
    }
    Err(RunError::Inconsistent("no stage of a step gives a velocity".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_its_own_row() {
        let table = Tensor::f32(vec![3, 2, 2], (0..12).map(|i| i as f32).collect());
        let context =
            vec![("k".to_string(), Tensor::f32(vec![1], vec![7.0])), (MODULATION.to_string(), table)];
        let second = row(&context, 1).unwrap();
        assert_eq!((&second.shape[..], second.as_f32()), (&[1, 2, 2][..], &[4.0, 5.0, 6.0, 7.0][..]));
        // No elements, and more of them to a row than there are addresses.
        let huge = Tensor::f32(vec![0, 1 << 40, 1 << 40], Vec::new());
        let huge = [(MODULATION.to_string(), huge)];
        for (context, step) in [(&context[..], 3), (&context[..1], 0), (&huge, 0)] {
            let error = row(context, step).unwrap_err().to_string();
            assert!(error.contains(&format!("`modulation` of step {}", step + 1)), "{error}");
        }
    }
}
