//! One plan on the GPU: completed with its weights, with a buffer for each input and output.

use std::collections::{BTreeMap, HashMap};

use bytemuck::{AnyBitPattern, NoUninit};
use safetensors::SafeTensors;
use turbo_engine_file::State;
use turbo_trt::{Context, DType, DeviceBuffer, Engine, Error, Stream, TensorInfo};

use super::Device;
use crate::RunError;
use crate::executor::{FROM, TO};

/// Buffers by name.
pub(crate) type Buffers = BTreeMap<String, DeviceBuffer>;

/// A loaded plan. Dropping it frees its weights and buffers.
#[derive(Debug)]
pub struct Stage {
    name: String,
    context: Context,
    memory: usize,
    tensors: Vec<TensorInfo>,
    buffers: Buffers,
    /// States that are both taken and given; what comes out of one run goes into the next.
    state: Vec<State>,
}

impl Stage {
    /// Loads a plan and gives it zeroed buffers. It has no memory to work in yet. A plan that was built without its
    /// weights gets those of safetensors files; `None` is for one that has them.
    ///
    /// # Errors
    /// A plan that TensorRT refuses, weights that are missing or of another model, too little memory.
    pub fn load(
        device: &Device,
        name: &str,
        plan: &[u8],
        weights: Option<&[&[u8]]>,
        state: &[State],
        stream: &Stream,
    ) -> Result<Stage, RunError> {
        let mut engine = device.runtime().deserialize(plan)?;
        if let Some(weights) = weights {
            fill(&mut engine, &tensors(weights)?).map_err(|error| {
                let what = "its plan and its weights do not belong together";
                RunError::Inconsistent(format!("stage `{name}`: {what}: {error}"))
            })?;
        }
        let mut stage = Stage {
            name: name.to_string(),
            context: Context::new(&engine)?,
            memory: engine.memory(),
            tensors: engine.tensors().to_vec(),
            buffers: Buffers::new(),
            state: state.to_vec(),
        };
        for tensor in engine.tensors() {
            let buffer = DeviceBuffer::new(device.shim(), tensor.bytes)?;
            // States start as zeros, and nothing else may be read before it is written.
            stream.fill(&buffer, 0)?;
            stage.bind(&tensor.name, buffer)?;
        }
        Ok(stage)
    }

    /// Bytes that it works in.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Gives it memory to work in.
    ///
    /// # Errors
    /// Too little memory.
    pub fn work_in(&mut self, arena: &DeviceBuffer) -> Result<(), RunError> {
        Ok(self.context.set_memory(arena)?)
    }

    fn bind(&mut self, port: &str, buffer: DeviceBuffer) -> Result<(), Error> {
        self.context.bind(port, &buffer)?;
        self.buffers.insert(port.to_string(), buffer);
        Ok(())
    }

    pub(crate) fn buffer(&self, port: &str) -> Result<&DeviceBuffer, RunError> {
        self.buffers.get(port).ok_or_else(|| {
            RunError::Inconsistent(format!("stage `{}` has no input or output `{port}`", self.name))
        })
    }

    /// Shape of an input or output; empty where there is none of that name.
    pub fn shape(&self, port: &str) -> Vec<usize> {
        let found = self.tensors.iter().find(|tensor| tensor.name == port);
        found.map(|tensor| tensor.shape.clone()).unwrap_or_default()
    }

    /// Inputs and outputs.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Puts a buffer in the place of an input's.
    pub(crate) fn give(&mut self, port: &str, buffer: DeviceBuffer) -> Result<(), RunError> {
        self.buffer(port)?;
        Ok(self.bind(port, buffer)?)
    }

    /// Whether there is an input of that name.
    pub(crate) fn takes(&self, port: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.is_input && tensor.name == port)
    }

    /// Takes each input `from.NAME` out of the output `to.NAME` of the latest stage before it that has one. What it
    /// hands on itself goes where the part before the last one put it, which nobody reads any more.
    ///
    /// # Errors
    /// Nothing before it gives what it takes.
    pub fn follow(&mut self, before: &[Stage]) -> Result<(), RunError> {
        for tensor in self.tensors.clone() {
            if let Some(name) = tensor.name.strip_prefix(FROM) {
                let output = format!("{TO}{name}");
                let giver = before.iter().rev().find_map(|stage| stage.buffers.get(&output));
                let missing =
                    || RunError::Inconsistent(format!("no stage before `{}` gives `{output}`", self.name));
                let buffer = giver.ok_or_else(missing)?.clone();
                self.bind(&tensor.name, buffer)?;
            } else if tensor.name.starts_with(TO) {
                let mut givers = before.iter().rev().filter_map(|stage| stage.buffers.get(&tensor.name));
                if let Some(buffer) = givers.nth(1).cloned() {
                    self.bind(&tensor.name, buffer)?;
                }
            }
        }
        Ok(())
    }

    /// Copies an input to the GPU.
    ///
    /// # Errors
    /// No such input, or another number of bytes than it has.
    pub fn upload<T: NoUninit>(&self, port: &str, values: &[T], stream: &Stream) -> Result<(), RunError> {
        Ok(stream.upload(self.buffer(port)?, values)?)
    }

    pub(crate) fn clear(&self, port: &str, stream: &Stream) -> Result<(), RunError> {
        Ok(stream.fill(self.buffer(port)?, 0)?)
    }

    /// An output, once the stream has come to it.
    ///
    /// # Errors
    /// No such output, or what failed on the GPU.
    pub fn download<T: NoUninit + AnyBitPattern>(
        &self,
        port: &str,
        stream: &Stream,
    ) -> Result<Vec<T>, RunError> {
        let buffer = self.buffer(port)?;
        let mut values = vec![T::zeroed(); buffer.len() / size_of::<T>()];
        stream.download(&mut values, buffer)?;
        Ok(values)
    }

    /// Enqueues a run; the states that come out go in next time.
    ///
    /// # Errors
    /// What TensorRT says.
    pub fn enqueue(&mut self, stream: &Stream) -> Result<(), RunError> {
        self.context.enqueue(stream)?;
        for state in self.state.clone() {
            // A first stage knows that its state is zero and takes none.
            let taken = self.buffers.get(&state.input).cloned();
            let (Some(before), Some(after)) = (taken, self.buffers.get(&state.output).cloned()) else {
                continue;
            };
            self.bind(&state.input, after)?;
            self.bind(&state.output, before)?;
        }
        Ok(())
    }

    /// Runs once over ones, zeros being what a masked prompt gives, and says whether all outputs are zeros: then the
    /// plan has not got its weights.
    ///
    /// # Errors
    /// What failed on the GPU.
    pub fn is_silent(&mut self, stream: &Stream) -> Result<bool, RunError> {
        for tensor in self.tensors.iter().filter(|tensor| tensor.is_input) {
            let one = one(tensor.dtype);
            self.upload(&tensor.name, &one.repeat(tensor.bytes / one.len()), stream)?;
        }
        self.context.enqueue(stream)?;
        for tensor in self.tensors.iter().filter(|tensor| !tensor.is_input) {
            if self.download::<u8>(&tensor.name, stream)?.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Milliseconds of each layer of one run.
    ///
    /// # Errors
    /// What TensorRT says.
    pub fn profile(&mut self, stream: &Stream) -> Result<Vec<turbo_trt::LayerTime>, RunError> {
        self.context.measure(true);
        self.context.enqueue(stream)?;
        stream.synchronize()?;
        self.context.measure(false);
        Ok(self.context.take_times())
    }

    /// Goes on from the state of another stage of the same network.
    pub(crate) fn with_state(mut self, mut state: Buffers) -> Result<Self, RunError> {
        for port in self.state.clone() {
            if self.buffers.contains_key(&port.input)
                && let Some(buffer) = state.remove(&port.name)
            {
                self.bind(&port.input, buffer)?;
            }
        }
        Ok(self)
    }

    /// Drops the engine and gives its state: what came out of the last run.
    pub(crate) fn into_state(mut self) -> Buffers {
        let mut state = Buffers::new();
        for port in std::mem::take(&mut self.state) {
            // Where the next run reads it, if it reads it at all.
            let newest = self.buffers.remove(&port.input).or_else(|| self.buffers.remove(&port.output));
            state.extend(newest.map(|buffer| (port.name, buffer)));
        }
        state
    }

    /// Drops the engine and gives its outputs.
    pub(crate) fn into_outputs(mut self) -> Buffers {
        let outputs = self.tensors.iter().filter(|tensor| !tensor.is_input);
        outputs.filter_map(|t| Some((t.name.clone(), self.buffers.remove(&t.name)?))).collect()
    }
}

/// Puts weights into an engine.
fn fill(engine: &mut Engine, stored: &HashMap<String, &[u8]>) -> Result<(), Error> {
    let mut refit = engine.refit()?;
    let wanted = refit.weights()?;
    // Weights were given, and an engine without them would run and give zeros.
    if wanted.is_empty() {
        let cause = "the plan takes no weights".to_string();
        return Err(Error::Refit { weight: None, cause, log: Vec::new() });
    }
    for weight in wanted {
        if let Some(bytes) = stored.get(weight.name.as_str()) {
            refit.set(&weight.name, weight.dtype, bytes)?;
        }
    }
    refit.run()
}

/// A one, as its bytes lie in memory.
fn one(dtype: DType) -> &'static [u8] {
    match dtype {
        DType::F32 => &[0, 0, 0x80, 0x3f],
        DType::F16 => &[0, 0x3c],
        DType::Bf16 => &[0x80, 0x3f],
        DType::F8 => &[0x38],
        DType::I64 => &[1, 0, 0, 0, 0, 0, 0, 0],
        DType::I32 => &[1, 0, 0, 0],
        DType::I8 | DType::U8 | DType::Bool | DType::Other => &[1],
    }
}

/// The tensors of safetensors files, by name.
fn tensors<'a>(files: &[&'a [u8]]) -> Result<HashMap<String, &'a [u8]>, RunError> {
    let mut found = HashMap::new();
    for file in files {
        let tensors = SafeTensors::deserialize(file)
            .map_err(|error| RunError::Inconsistent(format!("its weights cannot be read: {error}")))?;
        found.extend(tensors.iter().map(|(name, view)| (name.to_string(), view.data())));
    }
    Ok(found)
}
