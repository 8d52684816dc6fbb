//! From a plan to an engine, and weights into it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::c_char;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::api::{Raw, RawEngineInfo, RawTensor};
use crate::shim::{c_name, c_path, text};
use crate::{DType, Error, Library, Shim, TensorInfo};

/// TensorRT's runtime, with the plugins that its engines need.
#[derive(Debug)]
pub struct Runtime {
    handle: Arc<RuntimeHandle>,
}

#[derive(Debug)]
struct RuntimeHandle {
    library: Library,
    raw: Raw,
}

// SAFETY: all calls go through an exclusively borrowed `Runtime`; engines hold the handle only to keep it
// alive.
unsafe impl Send for RuntimeHandle {}
// SAFETY: as above.
unsafe impl Sync for RuntimeHandle {}

impl Drop for RuntimeHandle {
    fn drop(&mut self) {
        // SAFETY: made by `runtime_create`, destroyed once, after its engines.
        unsafe { (self.library.shim().api.runtime_destroy)(self.raw) }
    }
}

impl Runtime {
    /// A runtime on the thread's current GPU.
    ///
    /// # Errors
    /// What TensorRT says.
    pub fn new(library: &Library) -> Result<Runtime, Error> {
        let shim = library.shim();
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live library, and a place for a handle that outlives the call.
        shim.check(unsafe { (shim.api.runtime_create)(library.handle.raw, &raw mut raw) })?;
        Ok(Runtime { handle: Arc::new(RuntimeHandle { library: library.clone(), raw }) })
    }

    /// Loads a plugin library; before the plans that use its ops.
    ///
    /// # Errors
    /// A library that cannot be loaded or holds no plugins.
    pub fn load_plugins(&mut self, path: &Path) -> Result<(), Error> {
        let (path, shim) = (c_path(path)?, self.handle.library.shim());
        // SAFETY: a live runtime and a string that outlives the call.
        shim.check(unsafe { (shim.api.runtime_load_plugins)(self.handle.raw, path.as_ptr()) })
    }

    /// Loads a plan.
    ///
    /// # Errors
    /// What TensorRT says: another version, another GPU, a missing plugin, not enough memory.
    pub fn deserialize(&mut self, plan: &[u8]) -> Result<Engine, Error> {
        let shim = self.handle.library.shim();
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live runtime, bytes that are needed during the call only, and a place for a handle.
        shim.check(unsafe {
            (shim.api.engine_deserialize)(self.handle.raw, plan.as_ptr().cast(), plan.len(), &raw mut raw)
        })?;
        // From here on dropping the handle destroys the engine.
        let mut handle = EngineHandle {
            runtime: self.handle.clone(),
            raw,
            creating: Mutex::new(()),
            tensors: Vec::new(),
            layers: 0,
            memory: 0,
        };
        let mut info = RawEngineInfo::default();
        // SAFETY: a live engine, and a structure of the ABI's layout.
        unsafe { (shim.api.engine_info)(raw, &raw mut info) };
        handle.layers = usize::try_from(info.layers).unwrap_or(0);
        handle.memory = usize::try_from(info.memory).unwrap_or(0);
        for index in 0..info.tensors {
            let mut tensor = RawTensor::EMPTY;
            // SAFETY: as above; the name lives as long as the engine.
            shim.check(unsafe { (shim.api.engine_tensor)(raw, index, &raw mut tensor) })?;
            // SAFETY: as above.
            handle.tensors.push(unsafe { TensorInfo::from_raw(&tensor) }?);
        }
        Ok(Engine { handle: Arc::new(handle) })
    }
}

/// A loaded engine: kernels and weights on the GPU.
#[derive(Debug)]
pub struct Engine {
    pub(crate) handle: Arc<EngineHandle>,
}

#[derive(Debug)]
pub(crate) struct EngineHandle {
    runtime: Arc<RuntimeHandle>,
    pub(crate) raw: Raw,
    /// Held while a context is made: the engine is one thread's at a time.
    pub(crate) creating: Mutex<()>,
    tensors: Vec<TensorInfo>,
    layers: usize,
    memory: usize,
}

// SAFETY: contexts are made under the lock, a refit borrows the only owner exclusively, and everything else
// was read when the engine was made.
unsafe impl Send for EngineHandle {}
// SAFETY: as above.
unsafe impl Sync for EngineHandle {}

impl EngineHandle {
    pub(crate) fn shim(&self) -> Shim {
        self.runtime.library.shim()
    }

    pub(crate) fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub(crate) fn memory(&self) -> usize {
        self.memory
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        // SAFETY: made by `engine_deserialize`, destroyed once, after its contexts and before its runtime.
        unsafe { (self.shim().api.engine_destroy)(self.raw) }
    }
}

impl Engine {
    /// Inputs and outputs, in the engine's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.handle.tensors()
    }

    /// An input or output by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|tensor| tensor.name == name)
    }

    /// Layers after fusion.
    pub fn layers(&self) -> usize {
        self.handle.layers
    }

    /// Bytes of device memory that a context needs.
    pub fn memory(&self) -> usize {
        self.handle.memory
    }

    /// Begins to put weights into the engine. It must have no contexts.
    ///
    /// # Errors
    /// An engine with contexts, or one that was not built for it.
    pub fn refit<'w>(&mut self) -> Result<Refit<'_, 'w>, Error> {
        if Arc::get_mut(&mut self.handle).is_none() {
            let cause = "it has contexts".to_string();
            return Err(Error::Refit { weight: None, cause, log: Vec::new() });
        }
        let shim = self.handle.shim();
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live engine, and a place for a handle that outlives the call.
        shim.check(unsafe { (shim.api.refitter_create)(self.handle.raw, &raw mut raw) })?;
        let mut refit = Refit {
            shim,
            raw,
            weights: HashMap::new(),
            unset: BTreeSet::new(),
            _engine: PhantomData,
            _weights: PhantomData,
        };
        for weight in refit.weights()? {
            refit.unset.insert(weight.name.clone());
            refit.weights.insert(weight.name.clone(), weight);
        }
        Ok(refit)
    }
}

/// A weight that an engine lets be refitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefitWeight {
    /// Name of the initializer.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub count: i64,
}

/// Weights on their way into an engine, borrowed until [`Refit::run`].
#[derive(Debug)]
pub struct Refit<'e, 'w> {
    shim: Shim,
    raw: Raw,
    weights: HashMap<String, RefitWeight>,
    unset: BTreeSet<String>,
    _engine: PhantomData<&'e mut Engine>,
    _weights: PhantomData<&'w [u8]>,
}

// SAFETY: TensorRT's refitter may move between threads; all use is of one thread at a time.
unsafe impl Send for Refit<'_, '_> {}

impl<'w> Refit<'_, 'w> {
    /// What the engine wants.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn weights(&self) -> Result<Vec<RefitWeight>, Error> {
        let mut weights: Vec<RefitWeight> = Vec::new();
        // SAFETY: a live refitter; `push_weight` gets the pointer to `weights`, which outlives the call.
        self.shim.check(unsafe {
            (self.shim.api.refitter_weights)(self.raw, push_weight, (&raw mut weights).cast())
        })?;
        Ok(weights)
    }

    /// Names the values of a weight; they are read by [`Refit::run`].
    ///
    /// # Errors
    /// A weight that the engine does not have, or another type or length, all naming the weight.
    pub fn set(&mut self, name: &str, dtype: DType, data: &'w [u8]) -> Result<(), Error> {
        let refused = |cause: String| Error::Refit { weight: Some(name.to_string()), cause, log: Vec::new() };
        let expected =
            self.weights.get(name).ok_or_else(|| refused("the engine has no such weight".to_string()))?;
        let bytes = dtype.size().and_then(|size| usize::try_from(expected.count).ok()?.checked_mul(size));
        if expected.dtype != dtype || bytes != Some(data.len()) {
            return Err(refused(format!(
                "it is {} bytes of {dtype:?}, expected {} elements of {:?}",
                data.len(),
                expected.count,
                expected.dtype
            )));
        }
        let c_name = c_name(name)?;
        // SAFETY: a live refitter; the values have the length that TensorRT asks for and outlive the
        // refitter.
        self.shim.check(unsafe {
            let data = data.as_ptr().cast();
            (self.shim.api.refitter_set)(self.raw, c_name.as_ptr(), dtype.raw(), data, expected.count)
        })?;
        self.unset.remove(name);
        Ok(())
    }

    /// Copies the values into the engine.
    ///
    /// # Errors
    /// A weight that was not set, or what TensorRT says. TensorRT itself asks for none: an engine without its weights
    /// runs and gives zeros.
    pub fn run(self) -> Result<(), Error> {
        if let Some(first) = self.unset.first() {
            let cause = format!("it is missing, one of {} of {}", self.unset.len(), self.weights.len());
            return Err(Error::Refit { weight: Some(first.clone()), cause, log: Vec::new() });
        }
        // SAFETY: a live refitter; all values that it was given are alive.
        self.shim.check(unsafe { (self.shim.api.refitter_run)(self.raw) })
    }
}

impl Drop for Refit<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: made by `refitter_create` and destroyed once, before the engine.
        unsafe { (self.shim.api.refitter_destroy)(self.raw) }
    }
}

unsafe extern "C" fn push_weight(user: Raw, name: *const c_char, dtype: i32, count: i64) {
    // SAFETY: `weights` passes a pointer to its list, which nothing else uses meanwhile; the name lives
    // during the call.
    unsafe {
        (*user.cast::<Vec<RefitWeight>>()).push(RefitWeight {
            name: text(name),
            dtype: DType::from_raw(dtype),
            count,
        });
    }
}
