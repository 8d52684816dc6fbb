//! What a backend does for one video.

use turbo_engine_file::Sampler;
use turbo_media::Frame;
use turbo_sampler::{MAX_STEPS, NoiseSource, Schedule};

use crate::backend::Tensor;
use crate::run::Run;
use crate::{Precision, RunError};

/// A step that is split into parts hands values on: an input of this prefix is the output of the other one, of a part
/// before it.
pub(crate) const FROM: &str = "from.";
pub(crate) const TO: &str = "to.";

/// What the time of a step does to the network: the context gives a row for each step, the step takes its own.
pub(crate) const MODULATION: &str = "modulation";

/// The inputs of denoising.
pub(crate) struct Denoise<'a> {
    /// Text embedding `[1, text_len, text_dim]`.
    pub text: &'a Tensor,
    /// Condition of image-to-video, `[1, in - out, T, H, W]`.
    pub condition: Option<&'a Tensor>,
    /// Times and time steps.
    pub schedule: &'a Schedule,
    /// What happens between two steps.
    pub sampler: Sampler,
    /// Rounding at the network's inputs.
    pub precision: Precision,
}

impl Denoise<'_> {
    /// The context's input `times`, whose shape it is: what the network is told of the time of each step; zeros where
    /// there are fewer steps than rows.
    pub(crate) fn times(&self, shape: &[usize]) -> Result<Tensor, RunError> {
        let timesteps = match self.precision {
            Precision::Bf16 => &self.schedule.deployed_timesteps,
            Precision::F32 => &self.schedule.timesteps,
        };
        let (rows, width) = match *shape {
            [rows, width] if rows <= MAX_STEPS && width <= WIDEST && width.is_multiple_of(2) => (rows, width),
            _ => {
                let expected = format!("[steps, even width] of at most [{MAX_STEPS}, {WIDEST}]");
                let what = format!("the context takes `times` of the shape {shape:?}, not {expected}");
                return Err(RunError::Inconsistent(what));
            }
        };
        if timesteps.len() > rows {
            let what = format!("it was made for {rows} steps at most, not for {}", timesteps.len());
            return Err(RunError::Inconsistent(what));
        }
        let mut times: Vec<f32> =
            timesteps.iter().flat_map(|&timestep| turbo_sampler::time_embedding(timestep, width)).collect();
        times.resize(rows * width, 0.0);
        Ok(Tensor::f32(vec![rows, width], times))
    }
}

/// No time embedding is wider; Wan's are 256.
const WIDEST: usize = 1 << 16;

/// Executes the stages of an engine file. Each method loads what it needs, drops what is done, and reports its time
/// and progress to the run.
pub(crate) trait Executor {
    /// Token ids and mask `[1, text_len]` to the text embedding `[1, text_len, text_dim]`.
    fn encode_text(&mut self, run: &mut Run<'_>, ids: &Tensor, mask: &Tensor) -> Result<Tensor, RunError>;

    /// A first frame `[3, H, W]` in `[-1, 1]`, followed by black ones, to latents; `put` gets each latent frame's
    /// index and values `[c, h, w]`.
    fn encode_image(
        &mut self,
        run: &mut Run<'_>,
        pixels: Vec<f32>,
        put: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), RunError>;

    /// The final latent `[c, T, H, W]`.
    fn denoise(
        &mut self,
        run: &mut Run<'_>,
        work: &Denoise<'_>,
        noise: &mut dyn NoiseSource,
    ) -> Result<Vec<f32>, RunError>;

    /// Decodes the latent `[c, T, H, W]` and hands over the frames in order. Gives their number.
    fn decode(
        &mut self,
        run: &mut Run<'_>,
        latent: &[f32],
        frame: &mut dyn FnMut(Frame) -> Result<(), RunError>,
    ) -> Result<usize, RunError>;

    /// Most GPU memory that was in use at once, in bytes, where a GPU was used.
    fn peak_memory(&self) -> Option<u64> {
        None
    }
}

/// One latent frame `[c, h, w]` of `[c, t, h, w]`.
pub(crate) fn latent_frame(latent: &[f32], [c, t, h, w]: [usize; 4], index: usize) -> Vec<f32> {
    let plane = |channel: usize| &latent[(channel * t + index) * h * w..][..h * w];
    (0..c).flat_map(plane).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(steps: usize, precision: Precision, shape: &[usize]) -> Result<Tensor, String> {
        let schedule = turbo_sampler::schedule(steps, 80.0).unwrap();
        let text = Tensor::f32(vec![0], Vec::new());
        let work =
            Denoise { text: &text, condition: None, schedule: &schedule, sampler: Sampler::Sde, precision };
        work.times(shape).map_err(|error| error.to_string())
    }

    #[test]
    fn every_step_has_its_time_and_the_rest_is_zero() {
        let schedule = turbo_sampler::schedule(3, 80.0).unwrap();
        for (precision, first) in [(Precision::Bf16, 988.0), (Precision::F32, schedule.timesteps[0])] {
            let found = times(3, precision, &[4, 256]).unwrap();
            assert_eq!(found.shape, [4, 256]);
            assert_eq!(found.as_f32()[..256], turbo_sampler::time_embedding(first, 256));
            assert_ne!(found.as_f32()[256..512], found.as_f32()[..256]);
            assert!(found.as_f32()[512..768].iter().any(|&v| v != 0.0));
            assert_eq!(found.as_f32()[768..], [0.0; 256]);
        }
    }

    #[test]
    fn a_context_of_another_kind_is_refused() {
        let error = times(4, Precision::F32, &[2, 256]).unwrap_err();
        assert!(error.contains("it was made for 2 steps at most, not for 4"), "{error}");
        for shape in [&[][..], &[4], &[4, 256, 1], &[4, 255], &[5, 256], &[usize::MAX, 256], &[4, usize::MAX]]
        {
            let error = times(1, Precision::F32, shape).unwrap_err();
            assert!(error.contains("`times` of the shape") && error.contains("compile it again"), "{error}");
        }
    }
}
