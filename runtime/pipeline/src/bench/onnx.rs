//! Stages in ONNX Runtime, timed by the clock.

use std::time::Instant;

use super::{Bencher, Subject, milliseconds_since};
use crate::RunError;
use crate::backend::Tensor;
use crate::onnx::Onnx;
use crate::run::Run;
use crate::stage::Loaded;

struct OnnxSubject {
    stage: Loaded,
    inputs: Vec<(String, Tensor)>,
}

impl Bencher for Onnx<'_> {
    fn machine(&self) -> String {
        let runtime = self.runtime();
        format!("ONNX Runtime {}, {} threads", runtime.version(), runtime.threads())
    }

    fn load_alone(&mut self, run: &mut Run<'_>, name: &str) -> Result<Box<dyn Subject>, RunError> {
        Ok(Box::new(OnnxSubject { stage: self.load(run, name)?, inputs: Vec::new() }))
    }
}

impl Subject for OnnxSubject {
    fn feed(&mut self, name: &str, values: Tensor) -> Result<(), RunError> {
        self.inputs.push((name.to_string(), values));
        Ok(())
    }

    fn warm_up(&mut self) -> Result<(), RunError> {
        self.forward().map(drop)
    }

    fn forward(&mut self) -> Result<f64, RunError> {
        let inputs: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(name, v)| (name.as_str(), v)).collect();
        let start = Instant::now();
        let outputs = self.stage.run(&inputs)?;
        let milliseconds = milliseconds_since(start);
        drop(outputs);
        Ok(milliseconds)
    }
}
