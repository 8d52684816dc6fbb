//! What commands take from the machine: the backend, and Ctrl-C.

use std::sync::atomic::Ordering;

use anyhow::Context;
use turbo_engine_file::{BackendKind, EngineFile};
use turbo_pipeline::tensorrt::Device;
use turbo_pipeline::{Backend, RunError, backend};

use crate::arguments::MachineArguments;
use crate::bars::Bars;

/// The backend that an engine file needs.
///
/// # Errors
/// Its library is missing or of a version that is not supported; no GPU.
pub fn backend(file: &EngineFile, arguments: &MachineArguments) -> Result<Backend, RunError> {
    Ok(match file.manifest().backend.kind {
        BackendKind::OnnxRuntimeCpu => {
            let threads = arguments.threads.map(usize::from);
            backend::init(arguments.onnxruntime.as_deref(), threads)?.into()
        }
        BackendKind::TensorRt => {
            Device::open(arguments.gpu_libraries.as_deref(), arguments.tensorrt.as_deref())?.into()
        }
    })
}

/// Lets Ctrl-C set the flag of these bars.
///
/// # Errors
/// The system does not allow it.
pub fn listen(bars: &Bars) -> anyhow::Result<()> {
    let cancelled = bars.cancelled.clone();
    ctrlc::set_handler(move || cancelled.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")
}
