//! One stage in ONNX Runtime.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, SessionInputValue};
use ort::value::Outlet;
use turbo_ops::Op;

use super::operator::domain;
use super::tensor::{count, describe, extents};
use super::weights::{self, Bytes, Weight};
use super::{BackendError, Runtime, Tensor};

/// How often a run looks whether it should stop.
const POLL: Duration = Duration::from_millis(20);

/// Held while a session is made.
static LOADING: Mutex<()> = Mutex::new(());

/// What a session is made of.
pub struct Options<'a> {
    /// Stage name, for messages.
    pub stage: &'a str,
    /// The ONNX file; its weights are inputs that bear their names.
    pub graph: &'a [u8],
    /// Safetensors files that hold the weights, named for messages.
    pub weights: Vec<(String, Bytes)>,
    /// Set when the user asks to stop.
    pub cancelled: Arc<AtomicBool>,
}

/// A loaded stage. Dropping it frees everything but the outputs that are still held.
pub struct Session {
    stage: String,
    session: ort::session::Session,
    weights: BTreeMap<String, Weight>,
    cancelled: Arc<AtomicBool>,
}

impl Session {
    /// Loads a graph over its weights.
    ///
    /// # Errors
    /// What ONNX Runtime says of the graph; weights that cannot be read or are not what the graph asks for.
    pub fn load(runtime: &Runtime, options: Options<'_>) -> Result<Session, BackendError> {
        Session::load_with(runtime, options, turbo_ops::ALL)
    }

    pub(super) fn load_with(
        runtime: &Runtime,
        options: Options<'_>,
        ops: &[&'static Op],
    ) -> Result<Session, BackendError> {
        let stage = options.stage.to_string();
        let failed = |cause: String| BackendError::Load { stage: stage.clone(), cause };
        // ONNX Runtime checks and adds a custom domain in two steps, which two threads must not interleave.
        let loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut builder = configure(runtime, ops).map_err(|e| failed(e.to_string()))?;
        let session = builder.commit_from_memory(options.graph).map_err(|e| failed(e.to_string()))?;
        drop(loading);
        let stored = weights::read(&options.weights).map_err(&failed)?;
        let mut weights = BTreeMap::new();
        for outlet in session.inputs() {
            let Some(weight) = stored.get(outlet.name()) else { continue };
            let fits = outlet.dtype().tensor_type() == Some(weight.element) && shape(outlet) == weight.shape;
            if !fits {
                return Err(BackendError::Weight {
                    stage: stage.clone(),
                    weight: outlet.name().to_string(),
                    expected: describe(outlet.dtype().tensor_type(), &shape(outlet)),
                    found: weight.describe(),
                });
            }
            weight.view().map_err(|cause| failed(format!("weight {}: {cause}", outlet.name())))?;
            weights.insert(outlet.name().to_string(), weight.clone());
        }
        Ok(Session { stage, session, weights, cancelled: options.cancelled })
    }

    /// The inputs that a run takes: those of the graph that are no weights.
    fn inputs(&self) -> impl Iterator<Item = &Outlet> {
        self.session.inputs().iter().filter(|outlet| !self.weights.contains_key(outlet.name()))
    }

    /// Shape of an input; empty for a name that the graph does not have.
    pub fn input_shape(&self, name: &str) -> Vec<usize> {
        self.inputs().find(|outlet| outlet.name() == name).map(shape).unwrap_or_default()
    }

    /// Names of the inputs that a run takes.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs().map(Outlet::name)
    }

    /// Runs the graph once, and gives its outputs in the graph's order.
    ///
    /// The wish to stop is seen between two operators of the graph.
    ///
    /// # Errors
    /// Inputs that do not fit, a failing op, or the wish to stop.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError> {
        self.check(inputs)?;
        let stage = self.stage.clone();
        let failed = |cause: String| BackendError::Run { stage: stage.clone(), cause };
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in inputs {
            values.push((name, tensor.view().map_err(|e| failed(e.to_string()))?));
        }
        for (name, weight) in &self.weights {
            let value = weight.view().map_err(|cause| failed(format!("weight {name}: {cause}")))?;
            values.push((name, value));
        }
        let options = RunOptions::new().map_err(|e| failed(e.to_string()))?;
        let (session, cancelled) = (&mut self.session, &self.cancelled);
        let result = until(cancelled, &options, || {
            let mut outputs = session.run_with_options(values, &options)?;
            let names: Vec<String> = outputs.keys().map(str::to_string).collect();
            let take = |name: String| outputs.remove(&name).map(|value| (name, Tensor::held(value)));
            Ok(names.into_iter().filter_map(take).collect())
        });
        if cancelled.load(Ordering::Relaxed) {
            return Err(BackendError::Cancelled);
        }
        result.map_err(|error: ort::Error| failed(error.to_string()))
    }

    fn check(&self, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        let wrong = |input: &str, expected: String, found: String| BackendError::Input {
            stage: self.stage.clone(),
            input: input.to_string(),
            expected,
            found,
        };
        let mut open: HashSet<&str> = self.input_names().collect();
        for (name, tensor) in inputs {
            let found = || describe(tensor.element(), &tensor.shape);
            if !open.remove(name) {
                return Err(wrong(name, "absent, or given once".to_string(), found()));
            }
            let Some(outlet) = self.inputs().find(|outlet| outlet.name() == *name) else { continue };
            let (element, shape) = (outlet.dtype().tensor_type(), shape(outlet));
            if element != tensor.element() || shape != tensor.shape {
                return Err(wrong(name, describe(element, &shape), found()));
            }
            if count(&shape) != tensor.elements() {
                let elements = tensor.elements().unwrap_or(0);
                return Err(wrong(name, describe(element, &shape), format!("{elements} elements")));
            }
        }
        match self.inputs().find(|outlet| open.contains(outlet.name())) {
            Some(outlet) => {
                let expected = describe(outlet.dtype().tensor_type(), &shape(outlet));
                Err(wrong(outlet.name(), expected, "nothing".to_string()))
            }
            None => Ok(()),
        }
    }
}

/// Runs `work` and tells ONNX Runtime to stop as soon as the flag is set.
fn until<R>(cancelled: &AtomicBool, options: &RunOptions, work: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if cancelled.load(Ordering::Relaxed) {
                    // Whether the run ends early or not, the caller looks at the flag next.
                    drop(options.terminate());
                    return;
                }
                std::thread::park_timeout(POLL);
            }
        });
        let _end = End { done: &done, watch: watch.thread().clone() };
        work()
    })
}

/// Ends the watch, also when the work panics: the scope would wait for it for ever.
struct End<'a> {
    done: &'a AtomicBool,
    watch: Thread,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.watch.unpark();
    }
}

fn shape(outlet: &Outlet) -> Vec<usize> {
    outlet.dtype().tensor_shape().map(|shape| extents(shape)).unwrap_or_default()
}

fn configure(runtime: &Runtime, ops: &[&'static Op]) -> ort::Result<SessionBuilder> {
    let cpu = ort::ep::CPU::default().with_arena_allocator(true).build().error_on_failure();
    Ok(SessionBuilder::new(&runtime.environment)?
        .with_operators(domain(ops)?)?
        .with_execution_providers([cpu])?
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(runtime.threads)?
        // Our ops run on the same cores: threads that spin between operators would slow them down.
        .with_intra_op_spinning(false)?)
}
