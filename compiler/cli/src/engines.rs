//! Stages built as TensorRT plans, without their weights: those lie in the engine file once for all of them.
//!
//! A finished plan is kept in a cache folder under the digest of everything that it depends on, so a build that was
//! stopped goes on where it was, and what TensorRT measured of kernels is kept for the next build.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, mpsc};

use etcetera::BaseStrategy;
use safetensors::{Dtype, tensor::TensorView};
use sha2::{Digest, Sha256};
use turbo_engine_file::{self as file, Writer};
use turbo_graph::{DType, Graph, Payload};
use turbo_models::dit::{Recipe, Tiling};
use turbo_pipeline::tensorrt::{Device, Stage as Loaded};
use turbo_trt::{BuildOptions, DeviceBuffer, Error, Network, Stream};

use crate::CompileError;
use crate::choices::{Choices, Target};
use crate::compile::{Prepared, Progress};
use crate::manifest::graph_entry;
use crate::parser::Parser;
use crate::phases::Phases;
use crate::stages::Stage;

/// File of the cache folder with TensorRT's measurements.
const TIMINGS: &str = "timing.cache";

/// Builds plans on this machine's GPU.
pub(crate) struct Engines {
    device: Device,
    parser: Parser,
    /// Digest of the plugin library: other kernels make other plans.
    plugins_digest: String,
    cache: PathBuf,
    /// Optimisation level.
    level: u8,
}

impl Engines {
    /// Loads TensorRT and its plugins.
    ///
    /// # Errors
    /// A library, driver or GPU that is missing or unfit; a cache folder that cannot be made.
    pub(crate) fn open(choices: &Choices) -> Result<Self, CompileError> {
        let device = Device::open(choices.gpu_libraries.as_deref(), choices.tensorrt.as_deref())?;
        let parser = Parser::new(device.library())?;
        let plugins_digest = file::Source::of_file(parser.plugins())?.sha256;
        let cache = match &choices.build_cache {
            Some(folder) => folder.clone(),
            None => match etcetera::choose_base_strategy() {
                Ok(places) => places.cache_dir().join("turbo-compile"),
                Err(_) => {
                    return Err(CompileError::usage("there is no cache folder", "give --build-cache DIR"));
                }
            },
        };
        std::fs::create_dir_all(&cache).map_err(|cause| CompileError::Io { path: cache.clone(), cause })?;
        Ok(Engines { device, parser, plugins_digest, cache, level: choices.effort.unwrap_or(3) })
    }

    /// The block sizes of attention for the GPU, where neither choices nor checkpoint say any.
    pub(crate) fn tiling(&self) -> Tiling {
        tiling(self.device.gpu().compute_capability)
    }

    /// What the plans will be bound to.
    fn gpu(&self) -> Result<file::Gpu, CompileError> {
        let gpu = self.device.gpu();
        let (major, minor) = gpu.compute_capability;
        let (cuda, point) = self.device.library().shim().driver_version()?.unwrap_or_default();
        Ok(file::Gpu {
            name: gpu.name.clone(),
            compute_capability: [major.unsigned_abs(), minor.unsigned_abs()],
            tensorrt: self.device.library().version().to_string(),
            // The plugins' kernels are compiled for CUDA 12.8 or newer; a plan runs with the driver it was built with.
            cuda: format!("{cuda}.{point}"),
        })
    }

    /// Builds every stage over weights that the engine file already holds, adds plans and constants to it, measures
    /// the memory of each, and completes the manifest.
    ///
    /// # Errors
    /// What TensorRT says of a stage; an op that did not become a plugin; too little memory; the wish to stop.
    pub(crate) fn build(
        &mut self,
        prepared: &Prepared<'_>,
        graphs: &[Vec<u8>],
        writer: &mut Writer,
        manifest: &mut file::Manifest,
        progress: &mut dyn Progress,
    ) -> Result<(), CompileError> {
        let gpu = self.gpu()?;
        let mut plans = Vec::new();
        for (stage, graph) in prepared.stages.iter().zip(graphs) {
            let entry = prepared.entry(stage);
            let Some((path, start)) = writer.written(&entry)? else {
                return Err(CompileError::usage(format!("{entry} was not written"), "report this"));
            };
            let key = self.key(&gpu, graph, writer.digest(&entry).unwrap_or_default());
            progress.begin(&format!("building {}", stage.file), None);
            let kept = self.cache.join(format!("{key}.plan"));
            let plan = match std::fs::read(&kept) {
                Ok(plan) => plan,
                Err(_) => {
                    let plan = self.plan(prepared, stage, &path, start, progress)?;
                    keep(&kept, &plan)?;
                    plan
                }
            };
            writer.add(&constants_entry(stage), &constants(&stage.graph)?)?;
            writer.add(&graph_entry(stage, Target::Trt), &plan)?;
            plans.push(plan);
        }
        self.measure(prepared, &plans, writer, manifest, progress)?;
        manifest.backend = file::Backend {
            kind: file::BackendKind::TensorRt,
            min_version: gpu.tensorrt.rsplit_once('.').map_or(gpu.tensorrt.as_str(), |(v, _)| v).to_string(),
            gpu: Some(gpu),
        };
        Ok(())
    }

    /// Digest of all that a plan depends on. Weights count: what TensorRT chose may rely on their values.
    fn key(&self, gpu: &file::Gpu, graph: &[u8], weights: &str) -> String {
        let mut hash = Sha256::new();
        let parts: [&[u8]; 7] = [
            graph,
            weights.as_bytes(),
            self.plugins_digest.as_bytes(),
            gpu.name.as_bytes(),
            gpu.tensorrt.as_bytes(),
            env!("CARGO_PKG_VERSION").as_bytes(),
            &[self.level],
        ];
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn plan(
        &mut self,
        prepared: &Prepared<'_>,
        stage: &Stage,
        weights: &Path,
        start: u64,
        progress: &mut dyn Progress,
    ) -> Result<Vec<u8>, CompileError> {
        let weights =
            weights.canonicalize().map_err(|cause| CompileError::Io { path: weights.into(), cause })?;
        let location = weights.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let onnx = prepared.onnx_over(stage, &location, start)?;
        // The parser reads the weights out of the unfinished engine file.
        let network = self.parser.parse(&stage.file, &stage.graph, &onnx, &weights)?;
        let timings = std::fs::read(self.cache.join(TIMINGS)).ok();
        let options = BuildOptions { strip: true, level: self.level, timing_cache: timings.as_deref() };
        let plan = watched(network, &options, progress)?;
        keep(&self.cache.join(TIMINGS), plan.timing_cache())?;
        Ok(plan.bytes().to_vec())
    }

    /// Loads and runs every stage once, and writes into the manifest what it needs.
    fn measure(
        &self,
        prepared: &Prepared<'_>,
        plans: &[Vec<u8>],
        writer: &mut Writer,
        manifest: &mut file::Manifest,
        progress: &mut dyn Progress,
    ) -> Result<(), CompileError> {
        let shim = self.device.library().shim();
        let stream = Stream::new(shim)?;
        for (stage, plan) in prepared.stages.iter().zip(plans) {
            if progress.cancelled() {
                return Err(CompileError::Interrupted);
            }
            progress.begin(&format!("measuring {}", stage.file), None);
            let entry = graph_entry(stage, Target::Trt);
            // A plan that several videos share is described once for each of them.
            let mut described: Vec<&mut file::Stage> =
                manifest.stages.iter_mut().filter(|described| described.graph == entry).collect();
            let state = described.first().map(|described| described.state.clone()).unwrap_or_default();
            let mut maps = Vec::new();
            for entry in [prepared.entry(stage), constants_entry(stage)] {
                let Some((path, start)) = writer.written(&entry)? else { continue };
                maps.push(map(&path, start, writer.size(&entry).unwrap_or(0))?);
            }
            let weights: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();
            let before = shim.memory()?.free;
            let mut loaded = Loaded::load(&self.device, &stage.file, plan, Some(&weights), &state, &stream)?;
            let activation = loaded.memory();
            let arena = DeviceBuffer::new(shim, activation)?;
            loaded.work_in(&arena)?;
            let silent = loaded.is_silent(&stream)?;
            let used = before.saturating_sub(shim.memory()?.free);
            if silent {
                let cause = "its plan gives nothing but zeros".to_string();
                return Err(CompileError::Network { path: stage.file.clone().into(), cause });
            }
            for described in &mut described {
                described.peak_memory_bytes = Some(used.max(1));
                described.activation_bytes = Some(activation as u64);
                described.weights.push(constants_entry(stage));
            }
        }
        Ok(())
    }
}

/// Builds on a thread of its own, while this one shows how far it is.
fn watched(
    mut network: Network<'_>,
    options: &BuildOptions<'_>,
    progress: &mut dyn Progress,
) -> Result<turbo_trt::Plan, CompileError> {
    let cancelled = progress.stop_flag();
    let (send, shares) = mpsc::channel();
    let plan = std::thread::scope(|scope| {
        let build = scope.spawn(move || {
            let phases = Mutex::new(Phases::default());
            network.build(options, &|said| {
                let share = phases.lock().unwrap_or_else(PoisonError::into_inner).note(&said);
                send.send(share).is_ok() && !cancelled.load(Ordering::Relaxed)
            })
        });
        shares.iter().for_each(|share| progress.share(share));
        build.join()
    });
    match plan {
        Ok(plan) => Ok(plan?),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The block sizes that TurboDiffusion takes on a GPU of this compute capability (`SLA/core.py`,
/// `SageSparseLinearAttention`).
pub fn tiling(compute_capability: (i32, i32)) -> Tiling {
    match compute_capability {
        (9, 0) => Tiling { block_q: 64, block_k: 128 },
        _ => Recipe::default().tiling,
    }
}

/// Entry of the constants that a stage's plan leaves out.
fn constants_entry(stage: &Stage) -> String {
    format!("constants/{}.safetensors", stage.file)
}

/// Constants of the graph as a safetensors file: a plan leaves them out as it does weights.
///
/// # Errors
/// Constants that safetensors cannot hold.
pub fn constants(graph: &Graph) -> Result<Vec<u8>, CompileError> {
    let mut views = Vec::new();
    for initializer in graph.initializers() {
        let Payload::Inline(bytes) = &initializer.payload else { continue };
        let dtype = match graph.dtype(initializer.value) {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::Bf16 => Dtype::BF16,
            DType::F8E4M3 => Dtype::F8_E4M3,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        };
        let name = graph.value_name(initializer.value).to_string();
        let view = TensorView::new(dtype, graph.shape(initializer.value).to_vec(), bytes);
        views.push((name, view.map_err(|e| CompileError::usage(e.to_string(), "report this"))?));
    }
    safetensors::serialize(views, None).map_err(|e| CompileError::usage(e.to_string(), "report this"))
}

/// Part of the unfinished engine file.
fn map(path: &Path, start: u64, bytes: u64) -> Result<memmap2::Mmap, CompileError> {
    let io = |cause| CompileError::Io { path: path.to_path_buf(), cause };
    let file = std::fs::File::open(path).map_err(io)?;
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    // SAFETY: the temporary file is this process's own, and what was written of it does not change.
    unsafe { memmap2::MmapOptions::new().offset(start).len(len).map(&file) }.map_err(io)
}

/// Puts a file into the cache, whole or not at all.
fn keep(path: &Path, content: &[u8]) -> Result<(), CompileError> {
    let io = |cause| CompileError::Io { path: path.to_path_buf(), cause };
    let mut temporary =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).map_err(io)?;
    std::io::Write::write_all(&mut temporary, content).map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

impl From<Error> for CompileError {
    fn from(error: Error) -> Self {
        turbo_pipeline::RunError::from(error).into()
    }
}
