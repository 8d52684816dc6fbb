//! The sampler's moves on the GPU, with the arithmetic of `turbo_sampler` bit for bit.

use crate::memory::{same_length, unfit};
use crate::stream::keep;
use crate::{DeviceBuffer, Error, Stream};

/// The moves of the state `x`, which is f64 as on the CPU; noise, velocity and the network's input are f32.
///
/// The times of all steps and the number of the next one lie on the device: one captured graph, which ends with
/// [`Sampler::advance`], serves all steps, and the host has nothing to do between two launches.
#[derive(Debug)]
pub struct Sampler {
    /// As `turbo_trt.h` has it.
    schedule: DeviceBuffer,
    steps: usize,
}

impl Sampler {
    /// At the first step of a schedule: when each step begins, and the end.
    ///
    /// # Errors
    /// A schedule without steps, a capture in progress, or what CUDA says.
    pub fn new(stream: &Stream, times: &[f64]) -> Result<Sampler, Error> {
        let steps = times.len().saturating_sub(1);
        if steps == 0 {
            let found = format!("{} times", times.len());
            return Err(unfit("schedule", found, "at least two".to_string()));
        }
        let words: Vec<u64> =
            [0, steps as u64 - 1].into_iter().chain(times.iter().map(|time| time.to_bits())).collect();
        let schedule = DeviceBuffer::new(stream.shim(), size_of_val(&words[..]))?;
        stream.upload(&schedule, &words)?;
        Ok(Sampler { schedule, steps })
    }

    /// `x = t noise`, the state before the first step.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn initial(&self, stream: &Stream, x: &DeviceBuffer, noise: &DeviceBuffer) -> Result<(), Error> {
        let count = state(x, &[("noise", noise)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in noise, all aligned; a schedule.
        stream.enqueue(keep(&[x, noise, &self.schedule]), |queue| unsafe {
            (api.sampler_initial)(x.raw(), noise.raw(), self.schedule.raw(), count, queue)
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

    /// The step's row of a table that has one for each step, or more: values of four bytes.
    ///
    /// # Errors
    /// A table with fewer rows, or what CUDA says.
    pub fn row(&self, stream: &Stream, row: &DeviceBuffer, table: &DeviceBuffer) -> Result<(), Error> {
        let count = row.elements("row", size_of::<u32>())?;
        self.rows("table", table, count)?;
        let api = stream.shim().api;
        // SAFETY: `count` aligned words in row, and at least as often in table as the schedule has steps.
        stream.enqueue(keep(&[row, table, &self.schedule]), |queue| unsafe {
            (api.sampler_row)(row.raw(), table.raw(), self.schedule.raw(), count as i64, queue)
        })
    }

    /// The stochastic step, `x = (1 - next) (x - t v) + next noise`, with the step's row of `noise [steps, ...]`.
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
        let count = state(x, &[("velocity", v)])?;
        self.rows("noise", noise, count as usize)?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x, of f32 in v, and in noise for each step; all aligned; a schedule.
        stream.enqueue(keep(&[x, v, noise, &self.schedule]), |queue| unsafe {
            (api.sampler_sde)(x.raw(), v.raw(), noise.raw(), self.schedule.raw(), count, queue)
        })
    }

    /// The deterministic step, `x = x - (t - next) v`.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn ode_step(&self, stream: &Stream, x: &DeviceBuffer, v: &DeviceBuffer) -> Result<(), Error> {
        let count = state(x, &[("velocity", v)])?;
        let api = stream.shim().api;
        // SAFETY: `count` elements of f64 in x and of f32 in v, all aligned; a schedule.
        stream.enqueue(keep(&[x, v, &self.schedule]), |queue| unsafe {
            (api.sampler_ode)(x.raw(), v.raw(), self.schedule.raw(), count, queue)
        })
    }

    /// Goes on to the next step. Past the last one, all moves remain those of the last.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn advance(&self, stream: &Stream) -> Result<(), Error> {
        let api = stream.shim().api;
        // SAFETY: a schedule.
        stream.enqueue(keep(&[&self.schedule]), |queue| unsafe {
            (api.sampler_advance)(self.schedule.raw(), queue)
        })
    }

    /// An error unless there are `count` elements of four bytes for each step.
    fn rows(&self, what: &str, table: &DeviceBuffer, count: usize) -> Result<(), Error> {
        let found = table.elements(what, size_of::<u32>())?;
        if count.checked_mul(self.steps).is_some_and(|needed| needed <= found) {
            return Ok(());
        }
        let expected = format!("{count} for each of {} steps", self.steps);
        Err(unfit(what, format!("{found} elements"), expected))
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
