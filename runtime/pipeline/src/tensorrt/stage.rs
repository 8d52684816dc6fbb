//! One plan on the GPU: completed with its weights, with a buffer for each input and output.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::SafeTensors;
use turbo_engine_file::EngineFile;
use turbo_trt::{Context, DeviceBuffer, Pod, Stream, Weight};

use super::{Device, Memory};
use crate::RunError;

/// Buffers by name.
pub(crate) type Ports = BTreeMap<String, DeviceBuffer>;

/// A loaded stage. Dropping it frees its weights and buffers.
pub(crate) struct Stage {
    name: String,
    context: Context,
    buffers: Ports,
    shapes: BTreeMap<String, Vec<usize>>,
    outputs: Vec<String>,
    state: Vec<turbo_engine_file::State>,
}

impl Stage {
    pub(crate) fn load(
        device: &Device,
        file: &Arc<EngineFile>,
        name: &str,
        memory: &Memory,
        stream: &Stream,
    ) -> Result<Stage, RunError> {
        let stage = file.manifest().stage(name);
        let stage = stage.ok_or_else(|| RunError::Inconsistent(format!("there is no stage `{name}`")))?;
        let mut engine = device.runtime().deserialize(file.bytes(&stage.graph)?)?;
        let entries = stage.weights.iter().map(|path| file.bytes(path)).collect::<Result<Vec<_>, _>>()?;
        engine.refit(&weights(&entries)?)?;
        let mut context = engine.context()?;
        context.set_memory(memory.arena())?;
        let mut found = Stage {
            name: name.to_string(),
            buffers: Ports::new(),
            shapes: BTreeMap::new(),
            outputs: Vec::new(),
            state: stage.state.clone(),
            context,
        };
        for tensor in engine.tensors()? {
            let buffer = device.library().allocate(tensor.bytes())?;
            // States start as zeros, and nothing else may be read before it is written.
            buffer.fill(0, stream)?;
            found.context.set_address(&tensor.name, &buffer)?;
            if !tensor.input {
                found.outputs.push(tensor.name.clone());
            }
            found.shapes.insert(tensor.name.clone(), tensor.shape);
            found.buffers.insert(tensor.name, buffer);
        }
        Ok(found)
    }

    fn missing(&self, port: &str) -> RunError {
        RunError::Inconsistent(format!("stage `{}` has no input or output `{port}`", self.name))
    }

    pub(crate) fn buffer(&self, port: &str) -> Result<&DeviceBuffer, RunError> {
        self.buffers.get(port).ok_or_else(|| self.missing(port))
    }

    /// Shape of an input or output; empty where there is none of that name.
    pub(crate) fn shape(&self, port: &str) -> Vec<usize> {
        self.shapes.get(port).cloned().unwrap_or_default()
    }

    /// Puts a buffer in the place of an input's.
    pub(crate) fn give(&mut self, port: &str, buffer: DeviceBuffer) -> Result<(), RunError> {
        if self.buffer(port)?.len() != buffer.len() {
            return Err(RunError::Inconsistent(format!("`{port}` of stage `{}` has another size", self.name)));
        }
        self.context.set_address(port, &buffer)?;
        self.buffers.insert(port.to_string(), buffer);
        Ok(())
    }

    pub(crate) fn upload<T: Pod>(&mut self, port: &str, values: &[T], stream: &Stream) -> Result<(), RunError> {
        let buffer = self.buffer(port)?;
        if buffer.len() != size_of_val(values) {
            return Err(RunError::Inconsistent(format!("`{port}` of stage `{}` has another size", self.name)));
        }
        Ok(buffer.upload(values, stream)?)
    }

    pub(crate) fn clear(&mut self, port: &str, stream: &Stream) -> Result<(), RunError> {
        Ok(self.buffer(port)?.fill(0, stream)?)
    }

    /// An f32 output, once the stream has come to it.
    pub(crate) fn download(&self, port: &str, stream: &Stream) -> Result<Vec<f32>, RunError> {
        let buffer = self.buffer(port)?;
        let mut values = vec![0.0f32; buffer.len() / size_of::<f32>()];
        buffer.download(&mut values, stream)?;
        Ok(values)
    }

    /// Runs once; the states that come out go in next time.
    pub(crate) fn enqueue(&mut self, stream: &Stream) -> Result<(), RunError> {
        self.context.enqueue(stream)?;
        for port in self.state.clone() {
            // A first stage knows that the state is zero and takes none.
            let (Some(from), Some(to)) = (self.buffers.remove(&port.output), self.buffers.remove(&port.input))
            else {
                continue;
            };
            self.context.set_address(&port.input, &from)?;
            self.context.set_address(&port.output, &to)?;
            self.buffers.insert(port.input, from);
            self.buffers.insert(port.output, to);
        }
        Ok(())
    }

    /// Goes on from the state of another stage of the same network.
    pub(crate) fn with_state(mut self, mut state: Ports) -> Result<Self, RunError> {
        for port in self.state.clone() {
            if let Some(buffer) = state.remove(&port.name).filter(|_| self.buffers.contains_key(&port.input)) {
                self.give(&port.input, buffer)?;
            }
        }
        Ok(self)
    }

    /// Drops the engine and gives its state.
    pub(crate) fn into_state(mut self) -> Ports {
        let newest = |port: &turbo_engine_file::State| {
            // After a run, what came out lies where the next run reads it, if it reads it at all.
            let from = if self.buffers.contains_key(&port.input) { &port.input } else { &port.output };
            Some((port.name.clone(), from.clone()))
        };
        let places: Vec<(String, String)> = self.state.iter().filter_map(newest).collect();
        places.into_iter().filter_map(|(name, from)| Some((name, self.buffers.remove(&from)?))).collect()
    }

    /// Drops the engine and gives its outputs.
    pub(crate) fn into_outputs(mut self) -> Ports {
        let outputs = std::mem::take(&mut self.outputs);
        outputs.into_iter().filter_map(|name| Some((name.clone(), self.buffers.remove(&name)?))).collect()
    }
}

/// The tensors of mapped safetensors files, by name.
fn weights<'a>(files: &[&'a [u8]]) -> Result<BTreeMap<String, Weight<'a>>, RunError> {
    let mut weights = BTreeMap::new();
    for file in files {
        let tensors = SafeTensors::deserialize(file)
            .map_err(|error| RunError::Inconsistent(format!("its weights cannot be read: {error}")))?;
        for (name, view) in tensors.iter() {
            weights.insert(name.to_string(), Weight { bytes: view.data() });
        }
    }
    Ok(weights)
}
