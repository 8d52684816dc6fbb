//! Running an engine.

use std::collections::HashMap;
use std::ffi::c_char;
use std::sync::{Arc, PoisonError};

use crate::api::Raw;
use crate::memory::unfit;
use crate::runtime::EngineHandle;
use crate::shim::{c_name, text};
use crate::{DeviceBuffer, Engine, Error, Stream};

/// TensorRT asks for tensors at multiples of this.
const ALIGNMENT: usize = 256;

/// An engine at work: in memory that it is given, on tensors that it is bound to.
#[derive(Debug)]
pub struct Context {
    handle: Arc<Handle>,
    memory: Option<DeviceBuffer>,
    bound: HashMap<String, DeviceBuffer>,
    /// The stream of the last run.
    last: Option<Stream>,
}

#[derive(Debug)]
struct Handle {
    engine: Arc<EngineHandle>,
    raw: Raw,
}

// SAFETY: all calls go through an exclusively borrowed `Context`; graphs hold the handle only to keep it
// alive.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `context_create`, destroyed once, before its engine; `Context` and `Graph` wait for
        // the work that they enqueued.
        unsafe { (self.engine.shim().api.context_destroy)(self.raw) }
    }
}

/// Time of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTime {
    /// Name of the layer after fusion.
    pub layer: String,
    /// Milliseconds.
    pub milliseconds: f32,
}

impl Context {
    /// A context without memory.
    ///
    /// # Errors
    /// What TensorRT says.
    pub fn new(engine: &Engine) -> Result<Context, Error> {
        let engine = engine.handle.clone();
        let shim = engine.shim();
        let mut raw: Raw = std::ptr::null_mut();
        let lock = engine.creating.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a live engine that no other thread uses, and a place for a handle that outlives the call.
        shim.check(unsafe { (shim.api.context_create)(engine.raw, &raw mut raw) })?;
        drop(lock);
        let handle = Arc::new(Handle { engine, raw });
        Ok(Context { handle, memory: None, bound: HashMap::new(), last: None })
    }

    /// Gives it memory to work in, of at least [`Engine::memory`] bytes. Contexts that never run at the same
    /// time may share it.
    ///
    /// # Errors
    /// Memory that is too little or misaligned.
    pub fn set_memory(&mut self, memory: &DeviceBuffer) -> Result<(), Error> {
        let needed = self.handle.engine.memory();
        fits("memory of a context", memory, needed)?;
        let bytes = i64::try_from(memory.len()).unwrap_or(i64::MAX);
        // SAFETY: a live context; the memory lives as long as it does, or until it is given other memory.
        unsafe { (self.handle.engine.shim().api.context_set_memory)(self.handle.raw, memory.raw(), bytes) };
        self.memory = Some(memory.clone());
        Ok(())
    }

    /// Binds an input or output.
    ///
    /// # Errors
    /// A name that the engine does not have, or a buffer that is too short or misaligned.
    pub fn bind(&mut self, name: &str, buffer: &DeviceBuffer) -> Result<(), Error> {
        let engine = &self.handle.engine;
        let Some(tensor) = engine.tensors().iter().find(|tensor| tensor.name == name) else {
            return Err(run_error(Some(name), "the engine has no such tensor"));
        };
        fits(name, buffer, tensor.bytes)?;
        let (shim, c_name) = (engine.shim(), c_name(name)?);
        // SAFETY: a live context; the buffer is long enough and lives until another one is bound.
        shim.check(unsafe {
            (shim.api.context_set_address)(self.handle.raw, c_name.as_ptr(), buffer.raw())
        })?;
        self.bound.insert(name.to_string(), buffer.clone());
        Ok(())
    }

    /// Enqueues a run. Everything must be bound. Before the first capture of a context it must have run once,
    /// because TensorRT prepares some of it then.
    ///
    /// # Errors
    /// What is not bound, or what TensorRT says.
    pub fn enqueue(&mut self, stream: &Stream) -> Result<(), Error> {
        let engine = &self.handle.engine;
        if let Some(unbound) = engine.tensors().iter().find(|tensor| !self.bound.contains_key(&tensor.name)) {
            return Err(run_error(Some(&unbound.name), "it is not bound to a buffer"));
        }
        if engine.memory() > 0 && self.memory.is_none() {
            return Err(run_error(None, "its context has no memory"));
        }
        if !stream.is_capturing() {
            // One stream at a time: a context has one set of intermediate results, and the end of the last
            // stream is what dropping waits for.
            if let Some(before) = &self.last
                && !before.is(stream)
            {
                before.synchronize()?;
            }
            self.last = Some(stream.clone());
        }
        let api = engine.shim().api;
        let keep = |kept: &mut crate::stream::Kept| {
            kept.push(self.handle.clone());
            for buffer in self.bound.values().chain(&self.memory) {
                kept.push(Arc::new(buffer.clone()));
            }
        };
        // SAFETY: live handles. What the run touches lives until the context or its graph is dropped, which
        // waits.
        stream.enqueue(keep, |queue| unsafe { (api.context_enqueue)(self.handle.raw, queue) })
    }

    /// Measures every layer of the runs that follow. Such a run waits for its end and cannot be captured.
    pub fn measure(&mut self, on: bool) {
        // SAFETY: a live context.
        unsafe { (self.handle.engine.shim().api.context_measure)(self.handle.raw, on.into()) }
    }

    /// Times of the layers since they were last taken, run after run.
    pub fn take_times(&mut self) -> Vec<LayerTime> {
        let mut times: Vec<LayerTime> = Vec::new();
        let api = self.handle.engine.shim().api;
        // SAFETY: a live context; `push_time` gets the pointer to `times`, which outlives the call.
        unsafe { (api.context_take_times)(self.handle.raw, push_time, (&raw mut times).cast()) }
        times
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(stream) = &self.last {
            // A failure means that the GPU is lost, and nothing runs.
            drop(stream.synchronize());
        }
    }
}

fn fits(what: &str, buffer: &DeviceBuffer, needed: usize) -> Result<(), Error> {
    if buffer.len() < needed {
        return Err(unfit(what, format!("{} bytes", buffer.len()), format!("at least {needed}")));
    }
    match buffer.is_aligned(ALIGNMENT) {
        true => Ok(()),
        false => {
            Err(unfit(what, "a misaligned buffer".to_string(), format!("a multiple of {ALIGNMENT} bytes")))
        }
    }
}

fn run_error(tensor: Option<&str>, cause: &str) -> Error {
    Error::Run { tensor: tensor.map(str::to_string), cause: cause.to_string(), log: Vec::new() }
}

unsafe extern "C" fn push_time(user: Raw, layer: *const c_char, milliseconds: f32) {
    // SAFETY: `take_times` passes a pointer to its list, which nothing else uses meanwhile; the name lives
    // during the call.
    unsafe { (*user.cast::<Vec<LayerTime>>()).push(LayerTime { layer: text(layer), milliseconds }) }
}
