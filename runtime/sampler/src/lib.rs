//! The rCM sampler: times, steps and noise as pure functions over a `f64` state.
//!
//! A caller draws the initial noise, then for every step runs the network on the state and moves the state on:
//!
//! ```
//! use turbo_sampler::{Expert, NoiseKind, initial, schedule, sde_step};
//!
//! # fn network(_: Expert, _: f32, x: &[f64]) -> Vec<f32> { vec![0.5; x.len()] }
//! let plan = schedule(4, 80.0)?;
//! let mut noise = NoiseKind::Portable.source(7)?;
//! let mut x = initial(&noise.draw(16)?, plan.times[0]);
//! for step in 0..plan.steps() {
//!     let v = network(plan.expert(step, Some(0.9)), plan.deployed_timesteps[step], &x);
//!     sde_step(&mut x, &v, plan.times[step], plan.times[step + 1], &noise.draw(16)?)?;
//! }
//! # Ok::<(), turbo_sampler::Error>(())
//! ```
//!
//! The meaning is that of TurboDiffusion's `inference/wan2.1_t2v_infer.py` and `inference/wan2.2_i2v_infer.py`.

mod embedding;
mod error;
mod noise;
mod schedule;
mod step;

pub use embedding::time_embedding;
pub use error::Error;
pub use noise::{CudaGeometry, FileNoise, NoiseKind, NoiseSource, Portable, TorchCuda};
pub use schedule::{Expert, MAX_STEPS, Schedule, schedule};
pub use step::{initial, ode_step, sde_step};
