//! One stage in ONNX Runtime.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ort::AsPointer;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, SessionInputValue};
use ort::value::{TensorElementType, TensorRef, ValueType};

use super::operator::domain;
use super::{BackendError, Runtime};

/// How often a run looks whether it should stop.
const POLL: Duration = Duration::from_millis(20);

/// Owned elements of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// f32.
    F32(Vec<f32>),
    /// i8.
    I8(Vec<i8>),
    /// i32.
    I32(Vec<i32>),
    /// i64.
    I64(Vec<i64>),
}

/// An input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

impl Tensor {
    /// An f32 tensor.
    pub fn f32(shape: Vec<usize>, data: Vec<f32>) -> Self {
        Tensor { shape, data: Data::F32(data) }
    }
    /// An i64 tensor.
    pub fn i64(shape: Vec<usize>, data: Vec<i64>) -> Self {
        Tensor { shape, data: Data::I64(data) }
    }
    /// The f32 elements; empty for other types.
    pub fn as_f32(&self) -> &[f32] {
        match &self.data {
            Data::F32(v) => v,
            _ => &[],
        }
    }
    /// The f32 elements; empty for other types.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::F32(v) => v,
            _ => &mut [],
        }
    }
    fn describe(&self) -> String {
        let ty = match self.data {
            Data::F32(_) => "f32",
            Data::I8(_) => "i8",
            Data::I32(_) => "i32",
            Data::I64(_) => "i64",
        };
        format!("{ty}{:?}", self.shape)
    }
    fn element(&self) -> TensorElementType {
        match self.data {
            Data::F32(_) => TensorElementType::Float32,
            Data::I8(_) => TensorElementType::Int8,
            Data::I32(_) => TensorElementType::Int32,
            Data::I64(_) => TensorElementType::Int64,
        }
    }
}

/// Bytes that lie somewhere for as long as this lives, such as a part of a mapped file.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What a session is made of.
pub struct Options<'a> {
    /// Stage name, for messages.
    pub stage: &'a str,
    /// The ONNX file.
    pub graph: &'a [u8],
    /// Files that the graph's external data names, and their bytes.
    pub weights: Vec<(String, Bytes)>,
    /// Set when the user asks to stop.
    pub cancelled: Arc<AtomicBool>,
}

/// A loaded stage.
///
/// Weights are read where they lie: ONNX Runtime takes the mapped bytes as external initializers. Constant
/// folding and prepacking are off, because both make resident copies of weights: the one widens bf16 to f32 at
/// load, the other packs matrices.
pub struct Session {
    stage: String,
    // Dropped before the bytes that it reads.
    session: ort::session::Session,
    _weights: Vec<Bytes>,
    cancelled: Arc<AtomicBool>,
}

impl Session {
    /// Loads a graph over its weights.
    ///
    /// # Errors
    /// What ONNX Runtime says of the graph.
    pub fn load(runtime: &Runtime, options: Options<'_>) -> Result<Session, BackendError> {
        let stage = options.stage.to_string();
        let failed = |cause: String| BackendError::Load { stage: stage.clone(), cause };
        let mut builder = configure(runtime).map_err(|e| failed(e.to_string()))?;
        for (location, bytes) in &options.weights {
            attach(&mut builder, location, (**bytes).as_ref()).map_err(&failed)?;
        }
        let session = builder.commit_from_memory(options.graph).map_err(|e| failed(e.to_string()))?;
        let weights = options.weights.into_iter().map(|(_, bytes)| bytes).collect();
        Ok(Session { stage, session, _weights: weights, cancelled: options.cancelled })
    }

    /// Shape of an input; empty for a name that the graph does not have.
    pub fn input_shape(&self, name: &str) -> Vec<usize> {
        let outlet = self.session.inputs().iter().find(|o| o.name() == name);
        outlet.map(|o| dims(o.dtype())).unwrap_or_default()
    }

    /// Names of the inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.session.inputs().iter().map(|o| o.name())
    }

    /// Runs the graph once.
    ///
    /// # Errors
    /// Inputs that do not fit, a failing op, or the wish to stop.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, BackendError> {
        self.check(inputs)?;
        let stage = self.stage.clone();
        let failed = |error: ort::Error| BackendError::Run { stage: stage.clone(), cause: error.to_string() };
        let values = inputs
            .iter()
            .map(|(name, tensor)| Ok((*name, view(tensor)?)))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(failed)?;
        let options = RunOptions::new().map_err(failed)?;
        let cancelled = &self.cancelled;
        let done = AtomicBool::new(false);
        let session = &mut self.session;
        let result = std::thread::scope(|scope| {
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
            let outputs = session.run_with_options(values, &options).and_then(|outputs| {
                outputs.iter().map(|(name, value)| Ok((name.to_string(), extract(&value)?))).collect()
            });
            done.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            outputs
        });
        if cancelled.load(Ordering::Relaxed) {
            return Err(BackendError::Cancelled);
        }
        result.map_err(failed)
    }

    fn check(&self, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        let wrong = |input: &str, expected: String, found: String| BackendError::Input {
            stage: self.stage.clone(),
            input: input.to_string(),
            expected,
            found,
        };
        for outlet in self.session.inputs() {
            let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == outlet.name()) else {
                return Err(wrong(outlet.name(), format!("{}", outlet.dtype()), "nothing".to_string()));
            };
            let fits = outlet.dtype().tensor_type() == Some(tensor.element())
                && dims(outlet.dtype()) == tensor.shape;
            if !fits {
                return Err(wrong(outlet.name(), format!("{}", outlet.dtype()), tensor.describe()));
            }
        }
        match inputs.iter().find(|(name, _)| self.session.inputs().iter().all(|o| o.name() != *name)) {
            Some((name, tensor)) => Err(wrong(name, "absent".to_string(), tensor.describe())),
            None => Ok(()),
        }
    }
}

fn dims(ty: &ValueType) -> Vec<usize> {
    ty.tensor_shape()
        .map(|s| s.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect())
        .unwrap_or_default()
}

fn configure(runtime: &Runtime) -> ort::Result<SessionBuilder> {
    Ok(SessionBuilder::new(&runtime.environment)?
        .with_operators(domain()?)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_disabled_optimizers("ConstantFolding")?
        .with_prepacking(false)?
        .with_intra_threads(runtime.threads)?
        // Our ops run on the same cores: threads that spin between operators would slow them down.
        .with_intra_op_spinning(false)?
        .with_memory_pattern(true)?)
}

/// Registers `bytes` as the external data file `location`, without a copy.
fn attach(builder: &mut SessionBuilder, location: &str, bytes: &[u8]) -> Result<(), String> {
    let name = CString::new(location).map_err(|e| e.to_string())?;
    let api = ort::api();
    let (names, buffers, sizes) = ([name.as_ptr()], [bytes.as_ptr().cast_mut().cast()], [bytes.len()]);
    // SAFETY: names, buffers and sizes are arrays of one element that outlive the call; the options are the
    // builder's own. ONNX Runtime reads the buffer (it takes a mutable pointer but never writes initializers)
    // for as long as the session lives, and `Session` keeps the bytes until its session is gone.
    let status = unsafe {
        (api.AddExternalInitializersFromMemory)(
            builder.ptr().cast_mut(),
            names.as_ptr().cast(),
            buffers.as_ptr(),
            sizes.as_ptr(),
            1,
        )
    };
    // SAFETY: the status comes from the call above and is handed over once.
    unsafe { ort::Error::result_from_status(status) }.map_err(|e| e.to_string())
}

fn view(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape.clone();
    Ok(match &tensor.data {
        Data::F32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        Data::I64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
    })
}

fn extract(value: &ort::value::ValueRef<'_>) -> ort::Result<Tensor> {
    let ty = value.dtype().tensor_type();
    let shape = value.shape().iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
    let data = match ty {
        Some(TensorElementType::Float32) => Data::F32(value.try_extract_tensor::<f32>()?.1.to_vec()),
        Some(TensorElementType::Int8) => Data::I8(value.try_extract_tensor::<i8>()?.1.to_vec()),
        Some(TensorElementType::Int32) => Data::I32(value.try_extract_tensor::<i32>()?.1.to_vec()),
        Some(TensorElementType::Int64) => Data::I64(value.try_extract_tensor::<i64>()?.1.to_vec()),
        other => return Err(ort::Error::new(format!("outputs of type {other:?} are not used"))),
    };
    Ok(Tensor { shape, data })
}
