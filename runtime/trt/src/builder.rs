//! From an ONNX graph to a plan.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::api::{Raw, RawBuildOptions};
use crate::shim::{c_path, text};
use crate::{Error, Library, Shim};

/// TensorRT's builder. Making one takes seconds: it reads the builder's kernels. It makes one network after the other.
#[derive(Debug)]
pub struct Builder {
    library: Library,
    raw: Raw,
}

// SAFETY: TensorRT's builder may move between threads; all use takes the value exclusively.
unsafe impl Send for Builder {}

/// A layer of the parsed network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name, made from the node's.
    pub name: String,
    /// The op, where a plugin computes it.
    pub plugin: Option<String>,
}

/// How to build. f32 products are never rounded to TF32.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions<'a> {
    /// Leave large weights out of the plan: they come back by refitting, with the values that it was built with.
    pub strip: bool,
    /// Optimisation level, 0 to 5.
    pub level: u8,
    /// What an earlier build measured; ignored if it does not fit.
    pub timing_cache: Option<&'a [u8]>,
}

/// Where a build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is done.
    pub phase: &'a str,
    /// The phase that it is part of; empty for none.
    pub parent: &'a str,
    /// Steps of the phase.
    pub steps: u32,
    /// Steps done.
    pub step: u32,
}

impl Builder {
    /// A builder on the thread's current GPU.
    ///
    /// # Errors
    /// No parser beside the library, no GPU, or what TensorRT says.
    pub fn new(library: &Library) -> Result<Builder, Error> {
        library.open_parser()?;
        let shim = library.shim();
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live library, and a place for a handle that outlives the call.
        shim.check(unsafe { (shim.api.builder_create)(library.handle.raw, &raw mut raw) })?;
        Ok(Builder { library: library.clone(), raw })
    }

    fn shim(&self) -> Shim {
        self.library.shim()
    }

    /// Loads a plugin library, whose ops graphs may use from then on.
    ///
    /// # Errors
    /// A library that cannot be loaded or holds no plugins.
    pub fn load_plugins(&mut self, path: &Path) -> Result<(), Error> {
        let path = c_path(path)?;
        // SAFETY: a live builder and a string that outlives the call.
        self.shim().check(unsafe { (self.shim().api.builder_load_plugins)(self.raw, path.as_ptr()) })
    }

    /// Parses a graph into a strongly typed network. The graph's external data lie beside `path`, the absolute
    /// path of its ONNX file, which itself need not exist.
    ///
    /// # Errors
    /// What the parser says, node by node.
    pub fn parse(&mut self, onnx: &[u8], path: &Path) -> Result<Network<'_>, Error> {
        let path = c_path(path)?;
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live builder, a place for a handle; the graph and the path are needed during the call only.
        let parsed = unsafe {
            let bytes: *const c_void = onnx.as_ptr().cast();
            (self.shim().api.network_parse)(self.raw, bytes, onnx.len(), path.as_ptr(), &raw mut raw)
        };
        self.shim().check(parsed)?;
        Ok(Network { builder: self, raw })
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // SAFETY: made by `builder_create` and destroyed once; the library lives longer.
        unsafe { (self.shim().api.builder_destroy)(self.raw) }
    }
}

/// A parsed network of a builder.
#[derive(Debug)]
pub struct Network<'b> {
    builder: &'b mut Builder,
    raw: Raw,
}

// SAFETY: as the builder, which it has exclusively.
unsafe impl Send for Network<'_> {}

impl Network<'_> {
    /// All layers, in the network's order.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn layers(&self) -> Result<Vec<Layer>, Error> {
        let shim = self.builder.shim();
        let mut layers: Vec<Layer> = Vec::new();
        // SAFETY: a live network; `push_layer` gets the pointer to `layers`, which outlives the call.
        shim.check(unsafe { (shim.api.network_layers)(self.raw, push_layer, (&raw mut layers).cast()) })?;
        Ok(layers)
    }

    /// Builds. `progress` is asked at every step whether to go on, from TensorRT's threads, one at a time.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when it said no, or what TensorRT says.
    pub fn build(
        &mut self,
        options: &BuildOptions<'_>,
        progress: &(dyn Fn(Progress<'_>) -> bool + Sync),
    ) -> Result<Plan, Error> {
        let shim = self.builder.shim();
        let cache = options.timing_cache.unwrap_or_default();
        let raw_options = RawBuildOptions {
            strip: options.strip.into(),
            level: options.level.into(),
            timing_cache: if cache.is_empty() { std::ptr::null() } else { cache.as_ptr().cast() },
            timing_cache_bytes: cache.len(),
            progress: Some(report),
            user: (&raw const progress).cast_mut().cast(),
        };
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: a live network; the options and what they point to outlive the call, and `report` gets the
        // pointer to `progress`, which may be called from other threads.
        shim.check(unsafe { (shim.api.network_build)(self.raw, &raw const raw_options, &raw mut raw) })?;
        Ok(Plan { library: self.builder.library.clone(), raw })
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `network_parse` and destroyed once; the builder is borrowed and so alive.
        unsafe { (self.builder.shim().api.network_destroy)(self.raw) }
    }
}

/// A built plan.
#[derive(Debug)]
pub struct Plan {
    library: Library,
    raw: Raw,
}

// SAFETY: constant memory that may be freed on any thread.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    /// What [`Runtime::deserialize`](crate::Runtime::deserialize) takes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: see `view`.
        unsafe { self.view(self.library.shim().api.plan_bytes) }
    }

    /// What the build measured, for the next one; empty if TensorRT gave none.
    pub fn timing_cache(&self) -> &[u8] {
        // SAFETY: see `view`.
        unsafe { self.view(self.library.shim().api.plan_timing_cache) }
    }

    /// # Safety
    /// `get` gives null or memory that lives as long as the plan.
    unsafe fn view(&self, get: unsafe extern "C" fn(Raw, *mut *const c_void, *mut usize)) -> &[u8] {
        let (mut data, mut bytes) = (std::ptr::null(), 0);
        // SAFETY: a live plan, and places that outlive the call.
        unsafe { get(self.raw, &raw mut data, &raw mut bytes) };
        if data.is_null() {
            return &[];
        }
        // SAFETY: the caller says so.
        unsafe { std::slice::from_raw_parts(data.cast(), bytes) }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `network_build` and destroyed once.
        unsafe { (self.library.shim().api.plan_destroy)(self.raw) }
    }
}

/// Ends the process at once, without the destructors of TensorRT and CUDA: after a stopped build their threads may still
/// be at work, and would be torn down under them.
pub fn end_process(code: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: it only ends the process; what had to be written or removed is, since nothing of this program runs on.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

unsafe extern "C" fn push_layer(user: Raw, name: *const c_char, op: *const c_char) {
    // SAFETY: `layers` passes a pointer to its list, which nothing else uses meanwhile; the strings live
    // during the call, and `op` may be null.
    unsafe {
        let plugin = (!op.is_null()).then(|| text(op));
        (*user.cast::<Vec<Layer>>()).push(Layer { name: text(name), plugin });
    }
}

unsafe extern "C" fn report(
    user: Raw,
    phase: *const c_char,
    parent: *const c_char,
    steps: i32,
    step: i32,
) -> i32 {
    // SAFETY: `build` passes a pointer to its reference, which lives until the build is over; the callee may
    // be called from any thread.
    let progress = unsafe { *user.cast::<&(dyn Fn(Progress<'_>) -> bool + Sync)>() };
    // SAFETY: the strings live during the call.
    let (phase, parent) = unsafe { (text(phase), text(parent)) };
    let progress = AssertUnwindSafe(|| {
        progress(Progress {
            phase: &phase,
            parent: &parent,
            steps: steps.unsigned_abs(),
            step: step.unsigned_abs(),
        })
    });
    // A panic stops the build: it cannot pass through TensorRT.
    i32::from(catch_unwind(progress).unwrap_or(false))
}
