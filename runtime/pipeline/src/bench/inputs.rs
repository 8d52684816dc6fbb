//! Random inputs of stages: values of an ordinary size, never zeros, which run faster.

use turbo_engine_file::{DType, Sampling};
use turbo_sampler::{NoiseSource, Portable};

use crate::RunError;
use crate::backend::Tensor;

/// Seed of the values: every bench has the same.
const SEED: u64 = 7;
/// Elements of the pattern that an input repeats: a prime, so that no two rows are alike.
const PATTERN: usize = 65_521;
/// The greatest integer of an input. Every vocabulary has more tokens.
const LARGEST: u8 = 99;

/// What inputs are made of.
pub(super) struct Inputs {
    normal: Vec<f32>,
    /// The network's time step in the middle of the schedule.
    timestep: f32,
}

impl Inputs {
    /// # Errors
    /// A schedule that there is not.
    pub(super) fn new(sampling: &Sampling) -> Result<Inputs, RunError> {
        let schedule = turbo_sampler::schedule(sampling.steps as usize, sampling.sigma_max)?;
        let timestep = schedule.deployed_timesteps[schedule.steps() / 2];
        Ok(Inputs { normal: Portable::new(SEED).draw(PATTERN)?, timestep })
    }

    /// An input by its name, type and shape: standard normal values, except that `mask` lets every token through and
    /// `times` are embeddings of a time step. Integers run from 1 to 99. Floats of all types come as `f32`.
    ///
    /// # Errors
    /// A tensor that does not fit into memory.
    pub(super) fn values(&self, input: &turbo_engine_file::Tensor) -> Result<Tensor, RunError> {
        let huge = || RunError::Machine {
            what: format!("input `{}` of shape {:?} does not fit into memory", input.name, input.shape),
            hint: "use a machine with more memory".to_string(),
        };
        let shape: Option<Vec<usize>> = input.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let shape = shape.ok_or_else(huge)?;
        let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim)).ok_or_else(huge)?;
        let integers = 1..=LARGEST;
        let values = match input.dtype {
            DType::F64 | DType::F32 | DType::Bf16 | DType::F16 => {
                let last = shape.last().copied().unwrap_or(0);
                let values = match input.name.as_str() {
                    "mask" => repeat(&[1.0], count),
                    // No embedding is wider than the pattern.
                    "times" => {
                        repeat(&turbo_sampler::time_embedding(self.timestep, last.min(PATTERN)), count)
                    }
                    _ => repeat(&self.normal, count),
                };
                values.map(|values| Tensor::f32(shape, values))
            }
            DType::I64 => repeat(&integers.map(i64::from).collect::<Vec<_>>(), count)
                .map(|values| Tensor::i64(shape, values)),
            DType::I32 => repeat(&integers.map(i32::from).collect::<Vec<_>>(), count)
                .map(|values| Tensor::i32(shape, values)),
            DType::I8 => repeat(&integers.map(|i| i as i8).collect::<Vec<_>>(), count)
                .map(|values| Tensor::i8(shape, values)),
            DType::U8 => repeat(&integers.collect::<Vec<_>>(), count).map(|values| Tensor::u8(shape, values)),
            DType::Bool => repeat(&[1], count).map(|values| Tensor::u8(shape, values)),
        };
        values.ok_or_else(huge)
    }
}

/// So many elements of a pattern; none where there is no memory for them.
fn repeat<T: Copy>(pattern: &[T], count: usize) -> Option<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).ok()?;
    values.extend(pattern.iter().copied().cycle().take(count));
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, dtype: DType, shape: &[u64]) -> Result<Tensor, RunError> {
        let sampling =
            Sampling { steps: 4, sigma_max: 80.0, sampler: turbo_engine_file::Sampler::Sde, boundary: None };
        let input = turbo_engine_file::Tensor { name: name.to_string(), dtype, shape: shape.to_vec() };
        Inputs::new(&sampling).unwrap().values(&input)
    }

    #[test]
    fn floats_are_normal_values_and_the_same_each_time() {
        for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
            let x = values("x", dtype, &[1, 16, 9, 60, 104]).unwrap();
            let found = x.as_f32();
            assert_eq!((&x.shape[..], found.len()), (&[1, 16, 9, 60, 104][..], 16 * 9 * 60 * 104));
            assert!(found.iter().all(|v| v.is_finite() && *v != 0.0 && v.abs() < 7.0));
            let n = found.len() as f64;
            let square = found.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            let mean = found.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            assert!((square - 1.0).abs() < 0.02 && mean.abs() < 0.02, "{mean} {square}");
            assert_eq!(values("x", dtype, &[1, 16, 9, 60, 104]).unwrap().as_f32(), found);
            // Rows are not alike.
            assert_ne!(found[..104], found[104 * 630..][..104]);
        }
    }

    #[test]
    fn what_has_a_meaning_is_valid() {
        let mask = values("mask", DType::F32, &[1, 512]).unwrap();
        assert_eq!(mask.as_f32(), [1.0; 512]);
        // The third of four steps of the usual schedule.
        let time = values("times", DType::F32, &[2, 256]).unwrap();
        assert_eq!(time.as_f32(), turbo_sampler::time_embedding(852.0, 256).repeat(2));
        let ids = values("ids", DType::I64, &[1, 512]).unwrap();
        assert!(ids.as_i64().iter().all(|id| (1..=99).contains(id)) && ids.as_i64().len() == 512);
        assert_eq!(values("n", DType::I32, &[3]).unwrap().as_i32(), [1, 2, 3]);
        assert_eq!(values("n", DType::I8, &[3]).unwrap().as_i8(), [1, 2, 3]);
        assert_eq!(values("n", DType::U8, &[100]).unwrap().as_u8()[97..], [98, 99, 1]);
        assert_eq!(values("b", DType::Bool, &[2, 2]).unwrap().as_u8(), [1; 4]);
        assert_eq!(values("scalar", DType::F32, &[]).unwrap().as_f32().len(), 1);
    }

    #[test]
    fn what_no_memory_holds_is_an_error() {
        for (name, shape) in [("x", &[u64::MAX][..]), ("times", &[1 << 40, 1 << 40]), ("mask", &[1 << 62])] {
            let error = values(name, DType::F32, shape).unwrap_err();
            assert!(matches!(error, RunError::Machine { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
