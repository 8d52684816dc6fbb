//! The demo checkpoint as an engine file for the GPU: the same videos as the CPU's, and refusals.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use turbo_compile::choices::Target;
use turbo_compile::{Choices, NoProgress, compile};
use turbo_engine_file::EngineFile;
use turbo_pipeline::tensorrt::{Device, Stage};
use turbo_pipeline::{Engine, Events, Precision, Request, RunError, backend};
use turbo_sampler::NoiseKind;
use turbo_tests::demo::{Captions, folder, generate, generate_video, psnr};
use turbo_trt::{DeviceBuffer, Stream};

use crate::Cli;
use crate::report::Report;

/// Numbers of frames of the engine files; the first is the demo's own.
const FRAMES: usize = 33;
const FEWER: usize = 17;
/// First of the two plans of the transformer.
const PART: &str = "dit_1of2";
/// Captions whose videos are compared.
const CAPTIONS: usize = 4;
/// Least PSNR of the GPU's video against the CPU's, in dB, and most difference of their PSNR against the truth.
const SAME: f64 = 35.0;
const NEAR: f64 = 0.3;
/// Bytes that are left free where a run must find too little.
const LEFT: usize = 24 << 20;

/// Checks with engine files in `place`.
pub fn run(cli: &Cli, report: &mut Report, place: &Path) -> Result<()> {
    let (cpu, gpu) = (place.join("cpu.plan"), place.join("gpu.plan"));
    let choices = |output: &Path, target| Choices {
        model: Some(folder()),
        target: Some(target),
        tensorrt: cli.tensorrt.clone(),
        gpu_libraries: cli.gpu_libraries.clone(),
        build_cache: Some(place.join("cache")),
        effort: Some(0),
        frames: vec![FRAMES, FEWER],
        // The demo is small enough for one plan; larger models are split.
        parts: (target == Target::Trt).then_some(2),
        output: Some(output.to_path_buf()),
        ..Choices::default()
    };
    compile(&choices(&cpu, Target::Cpu), &mut NoProgress)?;
    let made = compile(&choices(&gpu, Target::Trt), &mut NoProgress)?;
    report.figure("demo", "compile, effort 0", made.total_seconds, "s");
    let again = compile(&choices(&gpu, Target::Trt), &mut NoProgress)?;
    report.figure("demo", "compile again, plans from the cache", again.total_seconds, "s");

    let open = || Device::open(cli.gpu_libraries.as_deref(), cli.tensorrt.as_deref());
    let device = open()?;
    let on_gpu = Engine::new(EngineFile::open(&gpu)?, open()?)?;
    let on_cpu = Engine::new(EngineFile::open(&cpu)?, backend::init(None, None)?)?;
    let captions = Captions::read()?;
    for one in &captions.held_out[..CAPTIONS] {
        let prompt = &one.captions[0];
        let truth = captions.truth(one)?;
        let (a, b) = (generate(&on_cpu, prompt, 4)?, generate(&on_gpu, prompt, 4)?);
        let same = psnr(&a, &b);
        report.figure("demo", &format!("PSNR of GPU against CPU: {prompt}"), same, "dB");
        report.case("demo", &format!("35 dB over it: {prompt}"), 1.0, || Ok(SAME / same));
        let apart = (psnr(&a, &truth) - psnr(&b, &truth)).abs();
        report.case("demo", &format!("dB to the truth, apart: {prompt}"), NEAR, || Ok(apart));
    }
    report.case("demo", "35 dB over it: the other number of frames", 1.0, || {
        let other = |engine| generate_video(engine, 1, "A red circle.", 4);
        let (a, b) = (other(&on_cpu)?, other(&on_gpu)?);
        ensure!(b.len() == FEWER, "{} frames", b.len());
        Ok(SAME / psnr(&a, &b))
    });
    report.case("demo", "the same seed gives the same video again", 0.0, || {
        let (a, b) = (generate(&on_gpu, "A red circle.", 4)?, generate(&on_gpu, "A red circle.", 4)?);
        Ok(if a.iter().zip(&b).all(|(a, b)| a.rgb == b.rgb) { 0.0 } else { 1.0 })
    });
    report.case("demo", "cancelled within a step", 0.0, || cancelled(&on_gpu));
    report.case("demo", "a run that finds no memory says so and the next one works", 0.0, || {
        let shim = device.library().shim();
        let free = usize::try_from(shim.memory()?.free)?;
        let taken = DeviceBuffer::new(shim, free.saturating_sub(LEFT))?;
        match generate(&on_gpu, "A red circle.", 1) {
            Err(error) if format!("{error:#}").contains("GPU memory") => println!("    {error:#}"),
            Err(error) => bail!("{error:#}"),
            Ok(_) => bail!("it ran in {LEFT} bytes"),
        }
        drop(taken);
        generate(&on_gpu, "A red circle.", 1).map(|_| 0.0)
    });
    report.case("demo", "a plan without its weights names one", 0.0, || {
        refused(&open()?, &EngineFile::open(&gpu)?, None, "weight")
    });
    report.case("demo", "a plan with another network's weights names one", 0.0, || {
        refused(&open()?, &EngineFile::open(&gpu)?, Some("weights/vae.safetensors"), "weight")
    });
    report.case("demo", "a cut plan is refused", 0.0, || {
        let (device, file) = (open()?, EngineFile::open(&gpu)?);
        let plan =
            file.bytes(&file.manifest().stage(PART, 0).context("no stage of the transformer")?.graph)?;
        let stream = Stream::new(device.library().shim())?;
        match Stage::load(&device, "dit", &plan[..plan.len() / 2], Some(&[]), &[], &stream) {
            Ok(_) => bail!("it was loaded"),
            Err(RunError::TensorRt(_)) => Ok(0.0),
            Err(other) => bail!("{other}"),
        }
    });
    Ok(())
}

/// Stops after the first step.
struct Stop {
    flag: Arc<AtomicBool>,
    steps: usize,
}

impl Events for Stop {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self) {
        self.steps += 1;
        self.flag.store(true, Ordering::Relaxed);
    }
    fn warn(&mut self, _: &str) {}
    fn cancelled(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }
}

fn cancelled(engine: &Engine) -> Result<f64> {
    let mut events = Stop { flag: Arc::default(), steps: 0 };
    let request = Request {
        video: 0,
        prompt: "A red circle.".to_string(),
        image: None,
        seed: 0,
        steps: Some(4),
        sampler: None,
        sigma_max: None,
        noise: NoiseKind::Portable.source(0)?,
        precision: Precision::Bf16,
        cache: None,
    };
    match engine.generate(request, &mut events, &mut |_| Ok(())) {
        Err(RunError::Interrupted) if events.steps == 1 => Ok(0.0),
        Err(other) => bail!("after {} steps: {other}", events.steps),
        Ok(_) => bail!("the run went on"),
    }
}

/// Loads the transformer's plan with other weights than its own, which must fail with a text that has `word` in it.
fn refused(device: &Device, file: &EngineFile, weights: Option<&str>, word: &str) -> Result<f64> {
    let stage = file.manifest().stage(PART, 0).context("no stage of the transformer")?;
    let weights = weights.iter().map(|entry| file.bytes(entry)).collect::<Result<Vec<_>, _>>()?;
    let stream = Stream::new(device.library().shim())?;
    match Stage::load(device, "dit", file.bytes(&stage.graph)?, Some(&weights), &[], &stream) {
        Ok(_) => bail!("it was loaded"),
        Err(error) if error.to_string().contains(word) => Ok(0.0),
        Err(error) => bail!("{error}"),
    }
}
