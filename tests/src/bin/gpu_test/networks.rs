//! Denoisers of the real shapes with random weights: they build, refit and run; how long that takes and what it needs.
//!
//! Random weights say nothing about accuracy, so one block of each width is compared with the CPU kernels instead.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use turbo_compile::engines::{constants, tiling};
use turbo_compile::resolve::default_parts;
use turbo_graph::{DType, Graph};
use turbo_models::dit::{self, Attention, Config, LatentSize, Linear, Recipe, Tiling};
use turbo_models::{Params, Weights};
use turbo_pipeline::backend::{self, Options, Session, Tensor};
use turbo_pipeline::tensorrt::{OWN, Stage, layer_op};
use turbo_tests::family::{rel, wide};
use turbo_tests::gpu::{ACTIVATION, Gpu};
use turbo_trt::{DeviceBuffer, Progress, Stream};

use crate::Cli;
use crate::random;
use crate::report::Report;

/// Runs of a forward that are timed, after one that is not; fewer once they take so many milliseconds.
const RUNS: usize = 5;
const ENOUGH: f32 = 3000.0;
/// Most seconds to load and refit the smaller network's plan, and host memory of it as a multiple of the weights.
const REFIT: f64 = 2.0;
const REFIT_MEMORY: f64 = 1.1;

/// Most relative L2 between the plan that was refitted and the one that was built with its weights. They are two builds:
/// TensorRT folds and rounds otherwise, and what bf16 rounds otherwise may fall on another INT8 value or another block
/// of the map in every block. Without its weights, or with others, a plan is off by about one. The bound is
/// the golden one of the INT8 network in bf16.
const SAME: f64 = 3e-2;

/// Any tensor that a graph asks for, in the form in which a checkpoint of this recipe has it.
struct Any {
    config: Config,
}

impl Weights for Any {
    fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        let Config { dim, ffn_dim, in_dim, out_dim, text_dim, freq_dim, .. } = self.config;
        let (stem, leaf) = name.rsplit_once('.')?;
        let matrix = |n: usize, k: usize| match leaf {
            "weight" => Some((DType::Bf16, vec![n, k])),
            "int8_weight" | "fp8_weight" => Some((DType::I8, vec![n, k])),
            "scale" => Some((DType::F32, vec![n.div_ceil(128), k.div_ceil(128)])),
            "bias" => Some((DType::F32, vec![n])),
            _ => None,
        };
        let part = stem.split_once('.').filter(|(first, _)| *first == "blocks");
        let inner = part.and_then(|(_, rest)| rest.split_once('.')).map(|(_, part)| part);
        match (stem, inner) {
            (_, Some("self_attn.attn_op.local_attn.proj_l")) => matrix(128, 128),
            (_, Some("ffn.0")) => matrix(ffn_dim, dim),
            (_, Some("ffn.2")) => matrix(dim, ffn_dim),
            (_, Some(part)) if part.ends_with("norm_q") || part.ends_with("norm_k") || part == "norm3" => {
                Some((DType::F32, vec![dim]))
            }
            (_, Some(part)) if part.contains("attn.") => matrix(dim, dim),
            ("patch_embedding", _) => matrix(dim, in_dim * 4),
            ("text_embedding.0", _) => matrix(dim, text_dim),
            ("text_embedding.2" | "time_embedding.2", _) => matrix(dim, dim),
            ("time_embedding.0", _) => matrix(dim, freq_dim),
            ("time_projection.1", _) => matrix(6 * dim, dim),
            ("head.head", _) => matrix(out_dim * 4, dim),
            ("head", _) => Some((DType::F32, vec![1, 2, dim])),
            (stem, None) if stem.starts_with("blocks.") => Some((DType::F32, vec![1, 6, dim])),
            _ => None,
        }
    }
}

/// A named network: `1.3b-480p-w8a8` (INT8 linears and SageSLA), `1.3b-480p-fp8` (FP8 linears and SageSLA),
/// `14b-720p-bf16` (bf16 linears and dense attention), `14b-720p-sagesla` (bf16 linears and SageSLA); `-block` for one
/// block against the CPU. SageSLA's tiling is TurboDiffusion's for the GPU: 64x128 on Hopper, 128x64 elsewhere.
struct Network {
    config: Config,
    recipe: Recipe,
    size: LatentSize,
    block: bool,
    /// Name of what all sizes share.
    weights: String,
}

impl Network {
    fn named(name: &str, tiling: Tiling) -> Option<Network> {
        let mut parts = name.split('-');
        let (dim, ffn_dim, layers) = match parts.next()? {
            "1.3b" => (1536, 8960, 30),
            "14b" => (5120, 13824, 40),
            _ => return None,
        };
        let (frames, height, width) = match parts.next()? {
            "480p" => (21, 60, 104),
            "720p" => (21, 90, 160),
            "small" => (3, 32, 40),
            _ => return None,
        };
        let size = LatentSize { frames, height, width };
        // A tenth of the smallest one's key blocks would be none.
        let topk = if size.height < 60 { 0.25 } else { 0.1 };
        let sparse = Recipe { tiling, topk, ..Recipe::default() };
        let recipe = match parts.next()? {
            "w8a8" => sparse,
            "fp8" => Recipe { linear: Linear::Fp8, ..sparse },
            "bf16" => Recipe { attention: Attention::Dense, linear: Linear::Bf16, ..sparse },
            "sagesla" => Recipe { linear: Linear::Bf16, ..sparse },
            _ => return None,
        };
        let block = parts.next() == Some("block");
        let config = Config {
            dim,
            ffn_dim,
            heads: dim / 128,
            layers: if block { 1 } else { layers },
            in_dim: 16,
            out_dim: 16,
            text_len: 512,
            text_dim: 4096,
            freq_dim: 256,
            eps: 1e-6,
            has_proj_l: true,
            quantized: false,
        };
        let weights = format!("{}-{}", name.split('-').next()?, name.split('-').nth(2)?);
        Some(Network { config, recipe, size, block, weights })
    }

    /// Whether a plan with all its weights is built too, for its size.
    fn small(&self) -> bool {
        self.config.dim < 2048 && self.size.height < 90
    }

    /// The whole denoiser.
    fn graph(&self, weights: &Any, compute: DType) -> Result<Graph> {
        self.part(weights, compute, 0..self.config.layers)
    }

    /// The graphs that turbo-compile would build.
    fn parts(&self, weights: &Any) -> Result<Vec<Graph>> {
        let parts = dit::parts(self.config.layers, default_parts(&self.config, self.recipe.linear));
        parts.into_iter().map(|blocks| self.part(weights, ACTIVATION, blocks)).collect()
    }

    fn part(&self, weights: &Any, compute: DType, blocks: Range<usize>) -> Result<Graph> {
        let params = match compute {
            DType::F32 => Params::new(weights, compute),
            _ => Params::converted(weights, compute),
        };
        Ok(dit::denoiser_part(&self.config, &self.recipe, params, 1, self.size, blocks)?)
    }
}

/// Builds, and runs unless only plans are wanted. `scratch` keeps weights and plans, so that a later call goes on.
pub fn run(gpu: &Gpu, cli: &Cli, report: &mut Report, name: &str, scratch: &Path) {
    let result = match Network::named(name, tiling(gpu.device.gpu().compute_capability)) {
        None => Err(anyhow::anyhow!("there is no network of this name")),
        Some(network) if network.block => block(gpu, report, name, &network, scratch),
        Some(network) => {
            plan(gpu, cli.effort, report, name, &network, scratch).and_then(|files| match cli.only_build {
                true => Ok(()),
                false => whole(gpu, report, name, &files),
            })
        }
    };
    let what = if cli.only_build { "builds" } else { "runs" };
    report.case("network", &format!("{name} {what}"), 0.0, || result.map(|()| 0.0));
}

/// What a network needs to be loaded.
struct Files {
    /// Plans of its parts without weights, each with its constants.
    parts: Vec<(Vec<u8>, Vec<u8>)>,
    /// The plan of all with weights, where that is small enough.
    whole: Option<Vec<u8>>,
    weights: PathBuf,
}

/// Builds a whole denoiser, or takes its plans from `scratch`.
fn plan(
    gpu: &Gpu,
    level: u8,
    report: &mut Report,
    name: &str,
    network: &Network,
    scratch: &Path,
) -> Result<Files> {
    let any = Any { config: network.config.clone() };
    let graph = network.graph(&any, ACTIVATION)?;
    // The same for all sizes.
    let weights = scratch.join(format!("{}.safetensors", network.weights));
    if !weights.exists() {
        random::weights(&graph, &weights)?;
    }
    let graphs = network.parts(&any)?;
    let mut figure =
        |what: &str, found: f64, unit| report.figure("network", &format!("{name}: {what}"), found, unit);
    let mut parts = Vec::new();
    let phases = Phases::new();
    let (mut seconds, mut bytes, mut peak) = (0.0, 0, 0);
    for (i, graph) in graphs.iter().enumerate() {
        let kept = scratch.join(format!("{name}.{i}.plan"));
        let plan = match std::fs::read(&kept) {
            Ok(plan) => plan,
            Err(_) => {
                forget_peak();
                let before = memory("VmRSS:");
                let start = Instant::now();
                let plan = gpu.plan(graph, Some(&weights), (true, level), &|said| phases.note(&said))?;
                seconds += start.elapsed().as_secs_f64();
                bytes += plan.len() as u64;
                peak = peak.max(memory("VmHWM:").saturating_sub(before));
                keep(&kept, &plan)?;
                plan
            }
        };
        parts.push((plan, constants(graph)?));
    }
    if bytes > 0 {
        figure("effort", f64::from(level), "");
        figure("weights", megabytes(std::fs::metadata(&weights)?.len()), "MB");
        figure("plans that it is split into", graphs.len() as f64, "");
        figure("build, stripped", seconds, "s");
        figure("host memory of the build", megabytes(peak), "MB");
        figure("plans, stripped", megabytes(bytes), "MB");
        for (phase, seconds) in longest(phases.seconds(), 4) {
            figure(&format!("build, {phase}"), seconds, "s");
        }
    }
    let kept = scratch.join(format!("{name}.whole"));
    let mut whole = std::fs::read(&kept).ok();
    if whole.is_none() && network.small() {
        let start = Instant::now();
        let built = gpu.plan(&graph, Some(&weights), (false, level), &|_| ())?;
        figure("build, whole, after it", start.elapsed().as_secs_f64(), "s");
        figure("plan, whole", megabytes(built.len() as u64), "MB");
        keep(&kept, &built)?;
        whole = Some(built);
    }
    Ok(Files { parts, whole, weights })
}

/// A phase that lasts longer is named at once: a build may take minutes.
const LONG: Duration = Duration::from_secs(5);

/// Where the time of builds goes, by the name of TensorRT's innermost phase.
struct Phases(Mutex<(Instant, String, BTreeMap<String, f64>)>);

impl Phases {
    fn new() -> Phases {
        Phases(Mutex::new((Instant::now(), "before the first phase".to_string(), BTreeMap::new())))
    }

    fn note(&self, said: &Progress<'_>) {
        let Ok(mut noted) = self.0.lock() else { return };
        let (since, phase, seconds) = &mut *noted;
        if since.elapsed() > LONG {
            println!("    {phase}: {:.0} s", since.elapsed().as_secs_f64());
        }
        *seconds.entry(std::mem::replace(phase, said.phase.to_string())).or_default() +=
            since.elapsed().as_secs_f64();
        *since = Instant::now();
    }

    fn seconds(self) -> Vec<(String, f64)> {
        let (_, _, seconds) = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        seconds.into_iter().collect()
    }
}

/// Writes a file, whole or not at all.
fn keep(path: &Path, content: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, content)?;
    Ok(std::fs::rename(&part, path)?)
}

/// A plan, and weights and constants where it was built without them.
struct Piece<'a> {
    plan: &'a [u8],
    weights: Option<[&'a [u8]; 2]>,
}

/// Loaded parts that run one after the other.
struct Chain {
    stages: Vec<Stage>,
    _arena: DeviceBuffer,
}

impl Chain {
    /// Loads plans in the order in which they run.
    fn load<'a>(gpu: &Gpu, pieces: impl Iterator<Item = Piece<'a>>, stream: &Stream) -> Result<Chain> {
        let mut stages: Vec<Stage> = Vec::new();
        for Piece { plan, weights } in pieces {
            let weights = weights.as_ref().map(|weights| &weights[..]);
            let mut stage = Stage::load(&gpu.device, "dit", plan, weights, &[], stream)?;
            stage.follow(&stages)?;
            stages.push(stage);
        }
        stream.synchronize()?;
        let most = stages.iter().map(Stage::memory).max().unwrap_or(0);
        let arena = DeviceBuffer::new(gpu.device.library().shim(), most)?;
        stages.iter_mut().try_for_each(|stage| stage.work_in(&arena))?;
        Ok(Chain { stages, _arena: arena })
    }

    /// Fills what is given from outside.
    fn fill(&self, stream: &Stream) -> Result<()> {
        self.stages.iter().try_for_each(|stage| random::fill(stage, stream))
    }

    fn enqueue(&mut self, stream: &Stream) -> Result<()> {
        Ok(self.stages.iter_mut().try_for_each(|stage| stage.enqueue(stream))?)
    }

    fn velocity(&self, stream: &Stream) -> Result<Vec<f32>> {
        Ok(self.stages.last().context("no part")?.download("velocity", stream)?)
    }
}

/// Loads, refits and runs a whole denoiser.
fn whole(gpu: &Gpu, report: &mut Report, name: &str, files: &Files) -> Result<()> {
    let shim = gpu.device.library().shim();
    let stream = Stream::new(shim)?;
    let gpu_before = shim.memory()?.free;
    forget_peak();
    let before = memory("VmRSS:");
    let start = Instant::now();
    let weights = map(&files.weights)?;
    let pieces =
        files.parts.iter().map(|(plan, constants)| Piece { plan, weights: Some([&weights, constants]) });
    let mut chain = Chain::load(gpu, pieces, &stream)?;
    let loaded = start.elapsed().as_secs_f64();
    let share = memory("VmHWM:").saturating_sub(before) as f64 / weights.len() as f64;
    report.figure("network", &format!("{name}: load and refit"), loaded, "s");
    report.figure("network", &format!("{name}: host memory of it over the weights"), share, "x");
    if name == "1.3b-480p-w8a8" {
        report.case("network", &format!("{name}: seconds to load and refit"), REFIT, || Ok(loaded));
        report.case("network", &format!("{name}: host memory over the weights"), REFIT_MEMORY, || Ok(share));
    }
    let gpu_loaded = shim.memory()?.free;
    chain.fill(&stream)?;
    chain.enqueue(&stream)?;
    let velocity = chain.velocity(&stream)?;
    let gpu_run = shim.memory()?.free;
    report.case("network", &format!("{name}: its output is that of the plan with weights"), SAME, || {
        ensure!(velocity.iter().all(|v| v.is_finite()) && spread(&velocity) > 1e-3, "{:?}", &velocity[..4]);
        let Some(plan) = &files.whole else { return Ok(0.0) };
        let mut whole = Chain::load(gpu, std::iter::once(Piece { plan, weights: None }), &stream)?;
        whole.fill(&stream)?;
        whole.enqueue(&stream)?;
        Ok(rel(&velocity, &whole.velocity(&stream)?))
    });
    let mut forward = || -> Result<f32> {
        let from = stream.record()?;
        chain.enqueue(&stream)?;
        let to = stream.record()?;
        to.synchronize()?;
        Ok(to.milliseconds_since(&from)?)
    };
    forward()?;
    let mut times = Vec::new();
    while times.len() < RUNS && (times.is_empty() || times.iter().sum::<f32>() < ENOUGH) {
        times.push(forward()?);
    }
    times.sort_by(f32::total_cmp);
    let median = f64::from(times[times.len() / 2]);
    report.figure("network", &format!("{name}: forward, median of {}", times.len()), median, "ms");
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let used = gpu_before.saturating_sub(shim.memory()?.free);
    let most = chain.stages.iter().map(Stage::memory).max().unwrap_or(0);
    report.figure("network", &format!("{name}: GPU memory"), gib(used), "GiB");
    report.figure("network", &format!("{name}: of which activations"), gib(most as u64), "GiB");
    let plans = gpu_before.saturating_sub(gpu_loaded).saturating_sub(most as u64);
    report.figure("network", &format!("{name}: of which plans, weights and inputs"), gib(plans), "GiB");
    let first = gpu_loaded.saturating_sub(gpu_run);
    report.figure("network", &format!("{name}: of which taken by the first run"), gib(first), "GiB");
    let mut kinds: BTreeMap<String, f64> = BTreeMap::new();
    let mut own: Vec<(String, f64)> = Vec::new();
    for stage in &mut chain.stages {
        for layer in stage.profile(&stream)? {
            let (kind, milliseconds) = (layer_op(&layer.layer), f64::from(layer.milliseconds));
            if kind == OWN {
                own.push((layer.layer.chars().take(NAME).collect(), milliseconds));
            }
            *kinds.entry(kind.to_string()).or_default() += milliseconds;
        }
    }
    for (layer, milliseconds) in longest(kinds.into_iter().collect(), 12) {
        report.figure("network", &format!("{name}: all of {layer}"), milliseconds, "ms");
    }
    for (layer, milliseconds) in longest(own, 6) {
        report.figure("network", &format!("{name}: one layer, {layer}"), milliseconds, "ms");
    }
    Ok(())
}

/// The layers that take longest.
fn longest(mut layers: Vec<(String, f64)>, count: usize) -> Vec<(String, f64)> {
    layers.sort_by(|a, b| b.1.total_cmp(&a.1));
    layers.truncate(count);
    layers
}

/// The most that is shown of a layer's name.
const NAME: usize = 120;

/// Standard deviation.
fn spread(values: &[f32]) -> f64 {
    let values = wide(values);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A file as it lies on disk.
fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path)?;
    // SAFETY: this program wrote the file and does not change it.
    Ok(unsafe { memmap2::Mmap::map(&file) }?)
}

/// One block against the CPU kernels over the same weights.
fn block(gpu: &Gpu, report: &mut Report, name: &str, network: &Network, scratch: &Path) -> Result<()> {
    let any = Any { config: network.config.clone() };
    let graph = network.graph(&any, ACTIVATION)?;
    let path = scratch.join(format!("{name}.safetensors"));
    random::weights(&graph, &path)?;
    let weights = std::fs::read(&path)?;
    let mut inputs = random::inputs(&graph);
    let fed: Vec<(&str, &[f32])> = inputs.iter().map(|(name, v)| (name.as_str(), v.as_slice())).collect();
    let found = gpu.engine(&graph, &weights)?.run(&fed)?;

    let runtime = backend::init(None, None)?;
    let graph = network.graph(&any, DType::F32)?;
    // The same values: what the GPU's graph takes converted, widened or in the shape of its own graph.
    let weights = random::widened(&graph, &weights)?;
    let onnx = turbo_onnx::encode_with_weight_inputs(&graph)?;
    let options = Options {
        stage: name,
        graph: &onnx,
        weights: vec![("weights".to_string(), std::sync::Arc::new(weights))],
        cancelled: Default::default(),
    };
    let shapes: BTreeMap<&str, Vec<usize>> =
        graph.inputs().iter().map(|&v| (graph.value_name(v), graph.shape(v).to_vec())).collect();
    let tensors: Vec<(String, Tensor)> = inputs
        .drain(..)
        .map(|(name, values)| {
            let shape = shapes.get(name.as_str()).cloned().unwrap_or_default();
            (name, Tensor::f32(shape, values))
        })
        .collect();
    let fed: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let expected = Session::load(&runtime, options)?.run(&fed)?;
    let (_, expected) = expected.first().context("no output")?;
    let error = rel(&found["velocity"], expected.as_f32());
    report.case("network", &format!("{name} against the CPU kernels"), 2e-2, || Ok(error));
    Ok(())
}

/// Bytes that the system counts for this process under a name; 0 where it does not tell.
fn memory(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// Starts to count the peak of resident memory anew, where the system can.
fn forget_peak() {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}
