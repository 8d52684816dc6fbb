//! Checkpoints in, engine file out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use turbo_engine_file::{EngineFile, Writer, machine};
use turbo_models::Weights;
use turbo_models::dit::{Linear, Recipe, Tiling};

use crate::choices::{Choices, Target};
use crate::engines::Engines;
use crate::inputs::Inputs;
use crate::network::Network;
use crate::resolve::Plan;
use crate::stages::{self, Networks, Source, Stage};
use crate::stored::{Layout, Stored};
use crate::{CompileError, manifest};

/// Where a compile reports what it is doing, and learns that it should stop.
pub trait Progress {
    /// A part of the work begins; `total` bytes when known.
    fn begin(&mut self, what: &str, total: Option<u64>);
    /// `bytes` more are done.
    fn advance(&mut self, bytes: u64);
    /// This share of the part is done, 0 to 1, where it is not counted in bytes.
    fn share(&mut self, _share: f64) {}
    /// Set when the user asks to stop.
    fn stop_flag(&self) -> Arc<AtomicBool>;
    /// Whether the user asked to stop.
    fn cancelled(&self) -> bool {
        self.stop_flag().load(Ordering::Relaxed)
    }
}

/// Reports nothing and never stops.
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64) {}
    fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::default()
    }
}

/// What a compile did, for people and for `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The engine file.
    pub output: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where the time went, in seconds, in order.
    pub seconds: Vec<(String, f64)>,
    /// Wall time from start to finished file.
    pub total_seconds: f64,
    /// Highest resident memory of the process in bytes, mapped files included, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Tensors that this compile does not need, per file.
    pub unused: BTreeMap<PathBuf, Vec<String>>,
    /// Checkpoints in the folder that were not used, and why.
    pub skipped: Vec<String>,
    /// Every choice, nothing left to defaults.
    pub choices: Choices,
    /// Stored bytes of each network's weights.
    pub weights: BTreeMap<String, u64>,
}

/// A plan with its networks' weights laid out and its graphs built; nothing is written yet.
pub struct Prepared<'a> {
    /// The resolved plan.
    pub plan: Plan,
    /// Stages in the order of use.
    pub stages: Vec<Stage>,
    /// Weights per network.
    pub weights: BTreeMap<Source, (Stored<'a>, Layout)>,
    /// Tensors that are not needed, per file.
    pub unused: BTreeMap<PathBuf, Vec<String>>,
}

impl<'a> Prepared<'a> {
    /// Resolves the choices and builds every graph; attention gets this tiling where nothing else is said.
    ///
    /// # Errors
    /// Everything that is wrong with the inputs and can be known before writing.
    pub fn new(choices: &Choices, inputs: &'a Inputs, tiling: Tiling) -> Result<Self, CompileError> {
        let plan = Plan::resolve(choices, inputs, tiling)?;
        let mut stored: BTreeMap<Source, Stored<'a>> = BTreeMap::new();
        for (source, network) in sources(inputs) {
            let linear = if matches!(source, Source::Dit(_)) { plan.recipe.linear } else { Linear::Bf16 };
            stored.insert(source, Stored::plan(network, linear)?);
        }
        let failed = |(source, error): (Source, turbo_graph::GraphError)| {
            let path = sources(inputs).find(|(s, _)| *s == source).map(|(_, n)| n.path.clone());
            CompileError::Network { path: path.unwrap_or_default(), cause: error.to_string() }
        };
        let (stages, optional) = {
            let weights = |source: Source| &stored[&source] as &dyn Weights;
            let networks = Networks {
                dits: (0..inputs.dits.len()).map(|i| weights(Source::Dit(i))).collect(),
                text_encoder: weights(Source::TextEncoder),
                vae: weights(Source::Vae),
            };
            let has_encoder = networks.vae.info("encoder.conv1.weight").is_some();
            let optional = match has_encoder {
                true => stages::encoder_weights(&plan, networks.vae).map_err(failed)?,
                false => BTreeSet::new(),
            };
            (stages::build(&plan, &networks).map_err(failed)?, optional)
        };
        let proj_l: BTreeSet<String> = turbo_models::dit::names::proj_l(plan.dit.layers).collect();
        let mut unused = BTreeMap::new();
        let mut weights = BTreeMap::new();
        for ((source, mut stored), (_, network)) in stored.into_iter().zip(sources(inputs)) {
            let graphs = || stages.iter().filter(|s| s.weights == source).map(|s| &s.graph);
            let used: BTreeSet<String> = graphs().flat_map(stages::weight_names).collect();
            if plan.target == Target::Trt {
                stored.convert(&stages::weight_forms(graphs())?);
            }
            let known = |name: &str| match source {
                Source::Dit(_) => proj_l.contains(name),
                Source::TextEncoder => false,
                Source::Vae => optional.contains(name),
            };
            let mut left = stored.keep(&used, known)?;
            left.extend(network.ignored.iter().cloned());
            if !left.is_empty() {
                unused.insert(network.path.clone(), left);
            }
            let layout = stored.layout();
            weights.insert(source, (stored, layout));
        }
        Ok(Prepared { plan, stages, weights, unused })
    }

    /// The stage's ONNX file as the engine file holds it: the runtime has the weights mapped and feeds them.
    ///
    /// # Errors
    /// What ONNX cannot hold.
    pub fn engine_graph(&self, stage: &Stage) -> Result<Vec<u8>, CompileError> {
        turbo_onnx::encode_with_weight_inputs(&stage.graph)
            .map_err(|cause| CompileError::Onnx { stage: stage.file.clone(), cause })
    }

    /// The stage's ONNX file for any reader; its external data refers to the weights' entries.
    ///
    /// # Errors
    /// What ONNX cannot hold.
    pub fn onnx(&self, stage: &Stage) -> Result<Vec<u8>, CompileError> {
        self.onnx_over(stage, &self.entry(stage), 0)
    }

    /// Entry of the stage's weights.
    pub(crate) fn entry(&self, stage: &Stage) -> String {
        entry_of(stage.weights, self.plan.boundary.is_some())
    }

    /// The stage's ONNX file over weights that start at this byte of a file beside it.
    pub(crate) fn onnx_over(
        &self,
        stage: &Stage,
        location: &str,
        start: u64,
    ) -> Result<Vec<u8>, CompileError> {
        let layout = self.weights.get(&stage.weights).map(|(_, layout)| layout);
        let places = Places { location, start, layout };
        turbo_onnx::encode(&stage.graph, &places)
            .map_err(|cause| CompileError::Onnx { stage: stage.file.clone(), cause })
    }
}

struct Places<'a> {
    location: &'a str,
    /// Where the weights' file starts in `location`.
    start: u64,
    layout: Option<&'a Layout>,
}

impl turbo_onnx::WeightPlaces for Places<'_> {
    fn place(&self, name: &str) -> Option<turbo_onnx::Place> {
        let (offset, length) = self.layout?.place(name)?;
        Some(turbo_onnx::Place { location: self.location.to_string(), offset: self.start + offset, length })
    }
}

/// The networks in the order of [`Source`].
pub(crate) fn sources(inputs: &Inputs) -> impl Iterator<Item = (Source, &Network)> {
    let dits = inputs.dits.iter().enumerate().map(|(i, network)| (Source::Dit(i), network));
    dits.chain([(Source::TextEncoder, &inputs.text_encoder), (Source::Vae, &inputs.vae)])
}

/// Entry of a network's weights in the engine file.
pub(crate) fn entry_of(source: Source, two_experts: bool) -> String {
    let name = match source {
        Source::Dit(index) => stages::expert_name(index, 1 + usize::from(two_experts)),
        Source::TextEncoder => "text_encoder",
        Source::Vae => "vae",
    };
    format!("weights/{name}.safetensors")
}

/// Compiles a model to an engine file.
///
/// # Errors
/// Everything in [`CompileError`]; nothing is written then, and nothing half-written left behind.
pub fn compile(choices: &Choices, progress: &mut dyn Progress) -> Result<Report, CompileError> {
    let start = Instant::now();
    let mut clock = Clock::default();
    let output = choices.output.clone().unwrap_or_else(|| PathBuf::from("engine.plan"));
    progress.begin("reading checkpoints", None);
    // Opened before any work, so that an output that cannot be written fails in the first second.
    let mut writer = Writer::create(&output)?;
    let there = choices.emit_onnx.as_ref().and_then(|folder| folder.ancestors().find(|path| path.exists()));
    if let Some(path) = there.filter(|path| !path.is_dir()) {
        return Err(CompileError::Io { path: path.into(), cause: io::ErrorKind::NotADirectory.into() });
    }
    let mut engines = match choices.target {
        // Opened before any work too: a missing library or GPU is known at once.
        Some(Target::Trt) => Some(Engines::open(choices)?),
        _ => None,
    };
    let inputs = Inputs::gather(choices)?;
    keep_inputs(&inputs, &output)?;
    clock.lap("read");
    progress.begin("building graphs", None);
    let tiling = engines.as_ref().map_or(Recipe::default().tiling, Engines::tiling);
    let prepared = Prepared::new(choices, &inputs, tiling)?;
    let tokenizer = std::fs::read(&inputs.tokenizer)
        .map_err(|cause| CompileError::Io { path: inputs.tokenizer.clone(), cause })?;
    turbo_text::Tokenizer::from_bytes(&tokenizer, prepared.plan.dit.text_len).map_err(|error| {
        CompileError::input(&inputs.tokenizer, error.to_string(), "give the tokenizer.json of umT5")
    })?;
    let graphs =
        prepared.stages.iter().map(|stage| prepared.engine_graph(stage)).collect::<Result<Vec<_>, _>>()?;
    clock.lap("build");

    if engines.is_none() {
        for (stage, graph) in prepared.stages.iter().zip(&graphs) {
            writer.add(&manifest::graph_entry(stage, Target::Cpu), graph)?;
        }
    }
    writer.add(manifest::TOKENIZER_ENTRY, &tokenizer)?;
    let mut sizes = BTreeMap::new();
    for (&source, (stored, layout)) in &prepared.weights {
        let entry = entry_of(source, prepared.plan.boundary.is_some());
        progress.begin(&format!("writing {entry}"), Some(layout.total()));
        write_weights(&mut writer, &output, &entry, stored, layout, progress)?;
        sizes.insert(entry, layout.total());
    }
    clock.lap("write weights");
    let mut manifest = manifest::build(&prepared, choices, &tokenizer)?;
    if let Some(engines) = &mut engines {
        engines.build(&prepared, &graphs, &mut writer, &mut manifest, progress)?;
        clock.lap("build engines");
    }
    progress.begin("digesting sources", None);
    manifest.sources = manifest::sources(&inputs, progress)?;
    clock.lap("digest sources");
    if progress.cancelled() {
        return Err(CompileError::Interrupted);
    }
    writer.finish(manifest)?;
    if let Some(folder) = &choices.emit_onnx {
        emit(&prepared, &output, folder)?;
    }
    clock.lap("finish");
    let bytes = std::fs::metadata(&output).map(|m| m.len()).unwrap_or(0);
    Ok(Report {
        choices: prepared.plan.choices(choices),
        unused: prepared.unused.clone(),
        skipped: inputs.skipped.clone(),
        output,
        bytes,
        seconds: clock.laps,
        total_seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: machine::peak_memory(),
        weights: sizes,
    })
}

/// Refuses an output that would replace anything but an engine file: a checkpoint's place is quickly mistyped.
fn keep_inputs(inputs: &Inputs, output: &Path) -> Result<(), CompileError> {
    let Ok(place) = output.canonicalize() else { return Ok(()) };
    let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == place);
    let input = sources(inputs).any(|(_, network)| same(&network.path)) || same(&inputs.tokenizer);
    let engine = || {
        let mut start = [0; 4];
        let read = std::fs::File::open(&place).and_then(|mut file| file.read_exact(&mut start));
        // An empty file is nobody's loss.
        read.map_or_else(|e| e.kind() == io::ErrorKind::UnexpectedEof, |()| start == *b"PK\x03\x04")
    };
    if !input && place.is_file() && engine() {
        return Ok(());
    }
    Err(CompileError::Usage {
        what: format!("{} is there already and is no engine file", output.display()),
        hint: "give another file with -o, or remove that one".to_string(),
    })
}

fn write_weights(
    writer: &mut Writer,
    target: &Path,
    entry: &str,
    stored: &Stored<'_>,
    layout: &Layout,
    progress: &mut dyn Progress,
) -> Result<(), CompileError> {
    let mut problem = None;
    let written = writer.add_stream(entry, layout.total(), |out| {
        let mut tick = |bytes| {
            progress.advance(bytes);
            match progress.cancelled() {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => Ok(()),
            }
        };
        stored.write(layout, out, &mut tick).map_err(|error| {
            problem = Some(error);
            io::Error::other("weights")
        })
    });
    if progress.cancelled() {
        return Err(CompileError::Interrupted);
    }
    match (written, problem) {
        (Ok(()), _) => Ok(()),
        // A failed write is the engine file's to explain; anything else went wrong on the reading side.
        (Err(_), Some(CompileError::Io { cause, .. })) => {
            Err(CompileError::Io { path: target.to_path_buf(), cause })
        }
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(error.into()),
    }
}

/// Writes every stage as an ONNX file, and the weights and tokenizer that the engine file holds beside them.
fn emit(prepared: &Prepared<'_>, engine: &Path, folder: &Path) -> Result<(), CompileError> {
    let file = EngineFile::open(engine)?;
    let graphs: BTreeSet<&String> = file.manifest().stages.iter().map(|stage| &stage.graph).collect();
    for stage in &prepared.stages {
        put(&folder.join(manifest::graph_entry(stage, Target::Cpu)), &prepared.onnx(stage)?)?;
    }
    for entry in file.manifest().entries.iter().filter(|entry| !graphs.contains(&entry.path)) {
        put(&folder.join(&entry.path), file.bytes(&entry.path)?)?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    let io = |cause| CompileError::Io { path: path.to_path_buf(), cause };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let temporary = path.with_extension("part");
    std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path)).map_err(|cause| {
        // What cannot be removed could not be written either.
        drop(std::fs::remove_file(&temporary));
        io(cause)
    })
}

/// Splits wall time into named parts.
struct Clock {
    last: Instant,
    laps: Vec<(String, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { last: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let spent: Duration = now - self.last;
        self.laps.push((name.to_string(), spent.as_secs_f64()));
        self.last = now;
    }
}
