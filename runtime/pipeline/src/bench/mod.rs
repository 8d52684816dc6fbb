//! Times of whole forwards of an engine file's stages.
//!
//! Each stage is loaded by itself, fed with random inputs, run once unmeasured and then as often as asked. What differs
//! between backends is behind two traits: a [`Bencher`] loads stages, a [`Subject`] is one of them.

mod inputs;
mod onnx;
mod report;
mod tensorrt;

use std::num::NonZeroU32;
use std::time::Instant;

use turbo_engine_file::{Manifest, Stage};

pub use report::{BenchReport, GpuMemory, OpTime, Spread, StageBench};

use crate::RunError;
use crate::backend::Tensor;
use crate::run::Run;
use inputs::Inputs;

/// What to time.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    /// Which of the engine file's videos: an index into the manifest's.
    pub video: usize,
    /// Names of stages; none means all that the video needs.
    pub stages: Vec<String>,
    /// Timed runs of each stage; one more comes before them.
    pub runs: NonZeroU32,
}

/// A backend whose stages are timed.
pub(crate) trait Bencher {
    /// What executes the stages, such as `ONNX Runtime 1.27.0, 8 threads`.
    fn machine(&self) -> String;

    /// Loads a stage of the run's video, and waits until it is loaded.
    fn load_alone(&mut self, run: &mut Run<'_>, name: &str) -> Result<Box<dyn Subject>, RunError>;
}

/// A loaded stage. It runs over the same inputs each time; states are zeros first and then carried on.
pub(crate) trait Subject {
    /// Sets an input. Floats come as `f32`, whatever type the stage takes.
    fn feed(&mut self, name: &str, values: Tensor) -> Result<(), RunError>;

    /// Runs for the first time, to the end.
    fn warm_up(&mut self) -> Result<(), RunError>;

    /// Runs to the end; gives its milliseconds.
    fn forward(&mut self) -> Result<f64, RunError>;

    /// Milliseconds of each layer of one more run, with the layer's op, where the backend can tell.
    fn layers(&mut self) -> Result<Vec<(String, f64)>, RunError> {
        Ok(Vec::new())
    }

    /// Memory that it takes on a GPU, where there is one.
    fn memory(&self) -> Option<GpuMemory> {
        None
    }
}

/// Times what was asked for, stage after stage.
pub(crate) fn run(
    request: &BenchRequest,
    run: &mut Run<'_>,
    bencher: &mut dyn Bencher,
) -> Result<BenchReport, RunError> {
    let manifest = run.manifest();
    let inputs = Inputs::new(&manifest.sampling)?;
    let mut stages = Vec::new();
    for stage in choose(manifest, run.index(), &request.stages)? {
        stages.push(time(stage, request.runs, &inputs, run, bencher)?);
    }
    let video = run.video();
    Ok(BenchReport {
        machine: bencher.machine(),
        size: format!("{}x{}", video.width, video.height),
        frames: video.frames,
        runs: request.runs.get(),
        steps: steps(manifest, &stages),
        stages,
    })
}

/// The named stages of a video, or all, each once and in the manifest's order.
fn choose<'m>(manifest: &'m Manifest, video: usize, names: &[String]) -> Result<Vec<&'m Stage>, RunError> {
    let all: Vec<&Stage> = manifest.stages.iter().filter(|stage| stage.serves(video)).collect();
    if let Some(unknown) = names.iter().find(|&name| all.iter().all(|stage| stage.name != *name)) {
        let has: Vec<&str> = all.iter().map(|stage| stage.name.as_str()).collect();
        let what = format!("the engine file has no stage `{unknown}` for this video");
        return Err(RunError::usage(what, format!("its stages are {}", has.join(", "))));
    }
    Ok(all.into_iter().filter(|stage| names.is_empty() || names.contains(&stage.name)).collect())
}

fn time(
    stage: &Stage,
    runs: NonZeroU32,
    inputs: &Inputs,
    run: &mut Run<'_>,
    bencher: &mut dyn Bencher,
) -> Result<StageBench, RunError> {
    let start = Instant::now();
    let mut subject = bencher.load_alone(run, &stage.name)?;
    let load_milliseconds = milliseconds_since(start);
    for input in &stage.inputs {
        subject.feed(&input.name, inputs.values(input)?)?;
    }
    run.events.begin(&format!("timing {}", stage.name), Some(u64::from(runs.get())));
    subject.warm_up()?;
    let mut times = Vec::new();
    for _ in 0..runs.get() {
        run.check()?;
        times.push(subject.forward()?);
        run.events.advance();
    }
    Ok(StageBench {
        name: stage.name.clone(),
        load_milliseconds,
        milliseconds: Spread::of(&times),
        all_milliseconds: times,
        gpu_memory: subject.memory(),
        ops: report::by_op(subject.layers()?),
    })
}

/// One forward of each transformer whose parts were all timed; one that is a single stage needs no sum.
fn steps(manifest: &Manifest, stages: &[StageBench]) -> Vec<StageBench> {
    let two = manifest.experts.low.is_some();
    let high = (if two { "step_high" } else { "step" }, &manifest.experts.high);
    let experts = std::iter::once(high).chain(manifest.experts.low.iter().map(|low| ("step_low", low)));
    let split = experts.filter(|(_, expert)| expert.steps.len() > 1);
    let sum = |(name, expert): (&str, &turbo_engine_file::Expert)| {
        let part = |name: &String| stages.iter().find(|stage| stage.name == *name);
        Some(StageBench::sum(name, &expert.steps.iter().map(part).collect::<Option<Vec<_>>>()?))
    };
    split.filter_map(sum).collect()
}

fn milliseconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests;
