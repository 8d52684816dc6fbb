//! A stage of the engine file, loaded, with the state that it carries from run to run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use turbo_engine_file::EngineFile;

use crate::RunError;
pub(crate) use crate::backend::Tensor;
use crate::backend::{BackendError, Bytes, Options, Runtime, Session};

/// States by name; the stages of one streaming network hand them on.
pub(crate) type State = BTreeMap<String, Tensor>;

pub(crate) struct Loaded {
    session: Session,
    ports: Vec<turbo_engine_file::State>,
    state: State,
}

/// The mapped bytes of one entry.
struct Entry {
    file: Arc<EngineFile>,
    path: String,
}

impl AsRef<[u8]> for Entry {
    fn as_ref(&self) -> &[u8] {
        // The entry was looked up when this value was made; the file cannot change since.
        self.file.bytes(&self.path).unwrap_or_default()
    }
}

impl Loaded {
    pub(crate) fn new(
        runtime: &Runtime,
        file: &Arc<EngineFile>,
        stage: &turbo_engine_file::Stage,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Loaded, RunError> {
        let mut weights: Vec<(String, Bytes)> = Vec::new();
        for path in &stage.weights {
            file.bytes(path)?;
            let entry = Entry { file: file.clone(), path: path.clone() };
            weights.push((path.clone(), Arc::new(entry)));
        }
        let options = Options { stage: &stage.name, graph: file.bytes(&stage.graph)?, weights, cancelled };
        let session = Session::load(runtime, options).map_err(interrupted)?;
        let zero = |port: &turbo_engine_file::State| {
            let shape: Vec<usize> = port.shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            let elements = shape.iter().product();
            (port.name.clone(), Tensor::f32(shape, vec![0.0; elements]))
        };
        let state = stage.state.iter().map(zero).collect();
        Ok(Loaded { session, ports: stage.state.clone(), state })
    }

    /// Goes on from the state of another stage of the same network.
    pub(crate) fn with_state(mut self, state: State) -> Self {
        self.state.extend(state);
        self
    }

    /// Drops the session and gives its state.
    pub(crate) fn into_state(self) -> State {
        self.state
    }

    /// Whether there is an input of that name.
    pub(crate) fn takes(&self, input: &str) -> bool {
        self.session.input_names().any(|name| name == input)
    }

    /// Shape of an input.
    pub(crate) fn input_shape(&self, name: &str) -> Vec<usize> {
        self.session.input_shape(name)
    }

    /// Runs once; states are fed and kept, the other outputs returned.
    pub(crate) fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, RunError> {
        let mut all = inputs.to_vec();
        let fed = self.ports.iter().filter(|port| self.session.input_names().any(|name| name == port.input));
        all.extend(fed.filter_map(|port| Some((port.input.as_str(), self.state.get(&port.name)?))));
        let mut outputs = self.session.run(&all).map_err(interrupted)?;
        for port in &self.ports {
            if let Some(index) = outputs.iter().position(|(name, _)| *name == port.output) {
                self.state.insert(port.name.clone(), outputs.swap_remove(index).1);
            }
        }
        Ok(outputs)
    }
}

fn interrupted(error: BackendError) -> RunError {
    match error {
        BackendError::Cancelled => RunError::Interrupted,
        other => RunError::Backend(other),
    }
}
