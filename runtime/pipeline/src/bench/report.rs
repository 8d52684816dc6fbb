//! What a bench found.

use std::collections::BTreeMap;

use serde::Serialize;

/// Times of an engine file's stages on one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// What executed the stages, such as `ONNX Runtime 1.27.0, 8 threads`.
    pub machine: String,
    /// Width and height of the video in pixels, such as `832x480`.
    pub size: String,
    /// Frames of the video.
    pub frames: u32,
    /// Timed runs of each stage.
    pub runs: u32,
    /// The stages, in the order in which a video first needs them.
    pub stages: Vec<StageBench>,
    /// For each transformer that is split into several of these stages, their sum: one forward. It is called `step`, with
    /// two experts `step_high` and `step_low`.
    pub steps: Vec<StageBench>,
}

/// Times of one stage, or of several that run one after the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageBench {
    /// Name of the stage.
    pub name: String,
    /// Wall time until it was loaded.
    pub load_milliseconds: f64,
    /// Times of a forward.
    pub milliseconds: Spread,
    /// Time of each forward, in the order of the runs.
    pub all_milliseconds: Vec<f64>,
    /// Memory on the GPU, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<GpuMemory>,
    /// Where the time of one more forward went, the longest first; empty where the backend does not tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ops: Vec<OpTime>,
}

/// How times are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest.
    pub least: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The longest.
    pub greatest: f64,
}

/// Memory of a stage on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GpuMemory {
    /// What a forward computes on the way lies in so many bytes, which stages share.
    pub activation_bytes: u64,
    /// So many bytes less were free once it was loaded: its weights, inputs and outputs.
    pub loaded_bytes: u64,
}

/// Time of all layers of one op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpTime {
    /// Name of the op, or `TensorRT's own`.
    pub op: String,
    /// Their time together.
    pub milliseconds: f64,
    /// The part of the time of all layers that this is, 0 to 1.
    pub share: f64,
}

impl StageBench {
    /// The forward that these are the parts of: the times of each run are added, and the parts are loaded together.
    pub(super) fn sum(name: &str, parts: &[&StageBench]) -> StageBench {
        let runs = parts.iter().map(|part| part.all_milliseconds.len()).min().unwrap_or(0);
        let all: Vec<f64> =
            (0..runs).map(|run| parts.iter().map(|part| part.all_milliseconds[run]).sum()).collect();
        let memory = |all: GpuMemory, part: GpuMemory| GpuMemory {
            activation_bytes: all.activation_bytes.max(part.activation_bytes),
            loaded_bytes: all.loaded_bytes.saturating_add(part.loaded_bytes),
        };
        let layers = parts.iter().flat_map(|part| &part.ops).map(|op| (op.op.clone(), op.milliseconds));
        StageBench {
            name: name.to_string(),
            load_milliseconds: parts.iter().map(|part| part.load_milliseconds).sum(),
            milliseconds: Spread::of(&all),
            all_milliseconds: all,
            gpu_memory: parts.iter().filter_map(|part| part.gpu_memory).reduce(memory),
            ops: by_op(layers),
        }
    }
}

impl Spread {
    /// Of these times; zeros where there are none.
    pub(super) fn of(times: &[f64]) -> Spread {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        let (Some(&least), Some(&greatest)) = (times.first(), times.last()) else { return Spread::default() };
        let (low, high) = (times[(times.len() - 1) / 2], times[times.len() / 2]);
        Spread { least, median: low + (high - low) / 2.0, greatest }
    }
}

/// Adds the milliseconds of layers up by their op.
pub(super) fn by_op(layers: impl IntoIterator<Item = (String, f64)>) -> Vec<OpTime> {
    let mut ops: BTreeMap<String, f64> = BTreeMap::new();
    for (op, milliseconds) in layers {
        *ops.entry(op).or_default() += milliseconds;
    }
    let total: f64 = ops.values().sum();
    let share = |milliseconds: f64| if total > 0.0 { milliseconds / total } else { 0.0 };
    let mut ops: Vec<OpTime> = ops
        .into_iter()
        .map(|(op, milliseconds)| OpTime { op, milliseconds, share: share(milliseconds) })
        .collect();
    ops.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    ops
}
