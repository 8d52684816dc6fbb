//! Times of the rCM steps and what the network is told about them.

use half::bf16;

use crate::Error;

/// Times between the first and the last, in TrigFlow angles. The distilled networks are run at these and no others
/// (TurboDiffusion `inference/wan2.1_t2v_infer.py`, `mid_t`).
const MIDDLE_ANGLES: [f64; 3] = [1.5, 1.4, 1.0];

/// Most steps of a schedule.
pub const MAX_STEPS: usize = MIDDLE_ANGLES.len() + 1;

/// When each step happens. Time runs from near 1 (noise) to 0 (data) on the rectified-flow axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Rectified-flow times, one more than there are steps, strictly falling, the last exactly 0.
    pub times: Vec<f64>,
    /// What the network gets as its time input at each step: `float32(t) * 1000`, not rounded further.
    pub timesteps: Vec<f32>,
    /// [`Self::timesteps`] rounded to bf16 (held in f32), as the deployed networks get them. The rounding is
    /// visible in the result: 987.65 becomes 988.
    pub deployed_timesteps: Vec<f32>,
}

/// Which of two networks runs a step. A model with one network runs [`Expert::High`] throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expert {
    /// The network for high noise, or the only one.
    High,
    /// The network for low noise.
    Low,
}

impl Schedule {
    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The network of step `step`: the low-noise one once the step's time is below `boundary`. `None`, or a step
    /// past the end, is [`Expert::High`].
    pub fn expert(&self, step: usize, boundary: Option<f64>) -> Expert {
        match (self.times.get(step), boundary) {
            (Some(&time), Some(boundary)) if step < self.steps() && time < boundary => Expert::Low,
            _ => Expert::High,
        }
    }

    /// Whether any step runs `expert`: with a boundary of 0.9, one or two steps never need the low-noise network.
    pub fn uses(&self, expert: Expert, boundary: Option<f64>) -> bool {
        (0..self.steps()).any(|step| self.expert(step, boundary) == expert)
    }
}

/// The schedule of `steps` (1 to [`MAX_STEPS`]) steps from noise level `sigma_max`.
///
/// # Errors
///
/// [`Error::Steps`]; [`Error::SigmaMax`] unless `sigma_max` is finite and above the noise level of the second time.
pub fn schedule(steps: usize, sigma_max: f64) -> Result<Schedule, Error> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(Error::Steps { found: steps });
    }
    let middle = &MIDDLE_ANGLES[..steps - 1];
    let least = middle.first().map_or(0.0, |&angle| libm::tan(angle));
    if !(sigma_max.is_finite() && sigma_max > least) {
        return Err(Error::SigmaMax { found: sigma_max, steps, least });
    }
    let mut times = vec![rectified_flow(libm::atan(sigma_max))];
    times.extend(middle.iter().map(|&angle| rectified_flow(angle)));
    times.push(0.0);

    let timesteps: Vec<f32> =
        times[..steps].iter().map(|&time| (f64::from(time as f32) * 1000.0) as f32).collect();
    let deployed_timesteps = timesteps.iter().map(|&t| bf16::from_f32(t).to_f32()).collect();
    Ok(Schedule { times, timesteps, deployed_timesteps })
}

/// TrigFlow angle to rectified-flow time. `libm` rather than the platform's functions: the same bits everywhere.
fn rectified_flow(angle: f64) -> f64 {
    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
    sin / (cos + sin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_schedule() {
        let plan = schedule(4, 80.0).unwrap();
        let expected = [0.987654321, 0.933781061, 0.852895395, 0.608979049, 0.0];
        for (time, expected) in plan.times.iter().zip(expected) {
            assert!((time - expected).abs() < 1e-9, "{time} {expected}");
        }
        assert_eq!(plan.deployed_timesteps, [988.0, 932.0, 852.0, 608.0]);
        assert_eq!(schedule(1, 200.0).unwrap().deployed_timesteps, [996.0]);
        assert_eq!(schedule(1, 1600.0).unwrap().deployed_timesteps, [1000.0]);
    }

    #[test]
    fn experts_switch_once() {
        let experts = |steps, boundary| {
            let plan = schedule(steps, 200.0).unwrap();
            (0..steps).map(|step| plan.expert(step, boundary)).collect::<Vec<_>>()
        };
        use Expert::{High, Low};
        assert_eq!(experts(4, Some(0.9)), [High, High, Low, Low]);
        assert_eq!(experts(2, Some(0.9)), [High, High]);
        assert_eq!(experts(4, None), [High; 4]);
        let plan = schedule(2, 200.0).unwrap();
        assert!(plan.uses(High, Some(0.9)) && !plan.uses(Low, Some(0.9)));
        assert!(plan.uses(Low, Some(0.94)));
        assert_eq!(plan.expert(2, Some(0.9)), High, "the end of the schedule is no step");
        // A time equal to the boundary still belongs to the high-noise network.
        assert_eq!(plan.expert(1, Some(plan.times[1])), High);
    }

    #[test]
    fn wrong_arguments() {
        for steps in [0, 5, usize::MAX] {
            assert!(matches!(schedule(steps, 80.0), Err(Error::Steps { found }) if found == steps));
        }
        for sigma in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            assert!(matches!(schedule(1, sigma), Err(Error::SigmaMax { .. })));
        }
        assert!(schedule(1, 5.0).is_ok());
        let error = schedule(2, 5.0).unwrap_err().to_string();
        assert!(error.contains("above 14.10"), "{error}");
    }

    proptest! {
        #[test]
        fn times_fall_from_below_one_to_zero(steps in 1usize..=4, sigma in 14.11f64..1e6) {
            let plan = schedule(steps, sigma).unwrap();
            prop_assert_eq!(plan.times.len(), steps + 1);
            prop_assert!(plan.times[0] < 1.0);
            prop_assert!(plan.times.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert_eq!(plan.times[steps], 0.0);
            // sigma = t / (1 - t) is what the angle stands for.
            let back = plan.times[0] / (1.0 - plan.times[0]);
            prop_assert!((back / sigma - 1.0).abs() < 1e-6);
        }
    }
}
