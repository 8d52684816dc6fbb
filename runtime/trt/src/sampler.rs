//! The sampler's moves on the GPU, with the arithmetic of `turbo_sampler` bit for bit.

use std::ffi::c_void;

use crate::memory::same_length;
use crate::stream::keep;
use crate::{DeviceBuffer, Error, Shim, Stream};

/// The moves of the state `x`, which is f64 as on the CPU; noise, velocity and the network's input are f32.
///
/// The times of a step lie on the device, so one captured graph serves all steps: [`Sampler::set_times`]
/// before each launch.
#[derive(Debug)]
pub struct Sampler {
    times: DeviceBuffer,
}

impl Sampler {
    /// Room for the times.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn new(shim: Shim) -> Result<Sampler, Error> {
        Ok(Sampler { times: DeviceBuffer::new(shim, 2 * size_of::<f64>())? })
    }

    /// The time of the next step and the one that it leads to. Waits for the step before.
    ///
    /// # Errors
    /// A capture in progress, or what CUDA says.
    pub fn set_times(&self, stream: &Stream, t: f64, next: f64) -> Result<(), Error> {
        stream.upload(&self.times, &[t, next])
    }

    /// `x = t noise`, the state before the first step.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn initial(&self, stream: &Stream, x: &DeviceBuffer, noise: &DeviceBuffer) -> Result<(), Error> {
        let count = state(x, &[("noise", noise)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in noise, two of f64 in times, all aligned.
        stream.enqueue(keep(&[x, noise, &self.times]), |queue| unsafe {
            (api.sampler_initial)(x.raw(), noise.raw(), self.times(), count, queue)
        })
    }

    /// The network's input from the state, rounded to bf16 values or not.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn input(
        &self,
        stream: &Stream,
        input: &DeviceBuffer,
        x: &DeviceBuffer,
        bf16: bool,
    ) -> Result<(), Error> {
        let count = state(x, &[("input", input)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in input, all aligned.
        stream.enqueue(keep(&[input, x]), |queue| unsafe {
            (api.sampler_input)(input.raw(), x.raw(), i32::from(bf16), count, queue)
        })
    }

    /// The stochastic step, `x = (1 - next) (x - t v) + next noise`.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn sde_step(
        &self,
        stream: &Stream,
        x: &DeviceBuffer,
        v: &DeviceBuffer,
        noise: &DeviceBuffer,
    ) -> Result<(), Error> {
        let count = state(x, &[("velocity", v), ("noise", noise)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in v and noise, two of f64 in times, all aligned.
        stream.enqueue(keep(&[x, v, noise, &self.times]), |queue| unsafe {
            (api.sampler_sde)(x.raw(), v.raw(), noise.raw(), self.times(), count, queue)
        })
    }

    /// The deterministic step, `x = x - (t - next) v`.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn ode_step(&self, stream: &Stream, x: &DeviceBuffer, v: &DeviceBuffer) -> Result<(), Error> {
        let count = state(x, &[("velocity", v)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in v, two of f64 in times, all aligned.
        stream.enqueue(keep(&[x, v, &self.times]), |queue| unsafe {
            (api.sampler_ode)(x.raw(), v.raw(), self.times(), count, queue)
        })
    }

    fn times(&self) -> *const c_void {
        self.times.raw()
    }
}

impl Stream {
    /// Rounds f32 values to those of bf16.
    ///
    /// # Errors
    /// A length that is no multiple of an element, or what CUDA says.
    pub fn round_bf16(&self, values: &DeviceBuffer) -> Result<(), Error> {
        let count = values.elements("values", size_of::<f32>())? as i64;
        let api = self.shim().api;
        // SAFETY: `count` aligned elements of f32.
        self.enqueue(keep(&[values]), |queue| unsafe { (api.round_bf16)(values.raw(), count, queue) })
    }
}

/// Elements of the f64 state, which the f32 buffers have as well.
fn state(x: &DeviceBuffer, others: &[(&str, &DeviceBuffer)]) -> Result<i64, Error> {
    let count = x.elements("state", size_of::<f64>())?;
    for (what, other) in others {
        same_length(what, other.elements(what, size_of::<f32>())?, count)?;
    }
    Ok(count as i64)
}
