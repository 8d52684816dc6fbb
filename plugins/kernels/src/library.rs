//! `libturbo_kernels.so`: `capi/turbo_kernels.h` in Rust.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// `TURBO_KERNELS_ABI` of the header that this file follows.
const ABI: i32 = 2;
const FILE: &str = "libturbo_kernels.so";
/// Bytes of an error's text.
const CAPACITY: usize = 1024;

/// `turbo_kernels_tensor`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawTensor {
    pub element: i32,
    pub rank: i32,
    pub dim: [i64; 4],
    pub data: *mut c_void,
}

/// `turbo_kernels_call`.
#[repr(C)]
pub(crate) struct RawCall {
    pub inputs: *const RawTensor,
    pub outputs: *const RawTensor,
    pub input_count: i32,
    pub output_count: i32,
    pub workspace: *mut c_void,
    pub workspace_bytes: usize,
}

/// `turbo_kernels_device`.
#[repr(C)]
struct RawDevice {
    name: [u8; 256],
    major: i32,
    minor: i32,
    multiprocessors: i32,
    clock: i32,
    driver: i32,
    runtime: i32,
    memory: u64,
    l2: u64,
}

/// What the kernels run on.
#[derive(Clone, Debug)]
pub struct Device {
    /// The product's name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Their highest clock, in kHz.
    pub clock: i32,
    /// Newest CUDA version that the driver takes.
    pub driver: String,
    /// Version of the CUDA runtime.
    pub runtime: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of L2 cache.
    pub l2: u64,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Device { name, capability: (major, minor), multiprocessors, driver, runtime, memory, .. } = self;
        let memory = *memory as f64 / f64::from(1 << 30);
        write!(
            f,
            "{name} (compute capability {major}.{minor}, {multiprocessors} SMs, {memory:.0} GiB); driver for CUDA \
             {driver}, runtime {runtime}"
        )
    }
}

/// Declares the functions that give 0 or an error, all of which end in a buffer for its text.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        pub(crate) struct Functions {
            abi: unsafe extern "C" fn() -> i32,
            pub destroy: unsafe extern "C" fn(*mut c_void),
            $(pub $name: unsafe extern "C" fn($($argument,)* *mut c_char, usize) -> i32,)*
        }

        impl Functions {
            /// # Safety
            /// The library's functions have the types that are declared here.
            unsafe fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the caller vouches for the types.
                unsafe {
                    Ok(Functions {
                        abi: *library.get("turbo_kernels_abi")?,
                        destroy: *library.get("turbo_kernels_destroy")?,
                        $($name: *library.get(concat!("turbo_kernels_", stringify!($name)))?,)*
                    })
                }
            }
        }
    };
}

functions! {
    describe(*mut c_void);
    malloc(usize, *mut *mut c_void);
    free(*mut c_void);
    copy(*mut c_void, *const c_void, usize);
    fill(*mut c_void, i32, usize);
    synchronize();
    create(*const c_char, *mut *mut c_void);
    set_int(*mut c_void, *const c_char, i64);
    set_float(*mut c_void, *const c_char, f32);
    set_word(*mut c_void, *const c_char, *const c_char);
    prepare(*mut c_void, *const RawCall, *mut usize);
    launch(*mut c_void, *const RawCall, *mut c_void);
    replay(*mut c_void, *const RawCall, i32);
    time(*mut c_void, *const RawCall, i32, *mut f32);
}

/// The loaded library.
pub struct Library {
    pub(crate) functions: Functions,
    /// Holds the functions' code.
    _library: libloading::Library,
}

impl Library {
    /// Loads the library from a path, or from where builds and installations put it.
    ///
    /// # Errors
    /// No such file, or another version of it.
    pub fn load(path: Option<&Path>) -> Result<Library> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => find()?,
        };
        // SAFETY: loading runs the library's initialisers, which are the C++ and CUDA runtimes' alone.
        let library = unsafe { libloading::Library::new(&path) }
            .with_context(|| format!("cannot load {}", path.display()))?;
        // SAFETY: the types are those of the header; whether the library follows it is asked next.
        let functions = unsafe { Functions::load(&library) }
            .with_context(|| format!("{} is no kernel library", path.display()))?;
        // SAFETY: the function takes nothing and has had this type in every version.
        let abi = unsafe { (functions.abi)() };
        if abi != ABI {
            bail!("{} has interface version {abi}, expected {ABI}", path.display());
        }
        Ok(Library { functions, _library: library })
    }

    /// Calls a function with a buffer for its error.
    pub(crate) fn call(&self, function: impl FnOnce(&Functions, *mut c_char, usize) -> i32) -> Result<()> {
        let mut text = [0u8; CAPACITY];
        if function(&self.functions, text.as_mut_ptr().cast(), CAPACITY) == 0 {
            return Ok(());
        }
        bail!("{}", until_nul(&text))
    }

    /// The first device, on which everything runs.
    ///
    /// # Errors
    /// There is none, or the driver is too old.
    pub fn device(&self) -> Result<Device> {
        let mut raw = RawDevice {
            name: [0; 256],
            major: 0,
            minor: 0,
            multiprocessors: 0,
            clock: 0,
            driver: 0,
            runtime: 0,
            memory: 0,
            l2: 0,
        };
        // SAFETY: `raw` is a `turbo_kernels_device` that outlives the call.
        self.call(|f, text, size| unsafe { (f.describe)((&raw mut raw).cast(), text, size) })?;
        let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        Ok(Device {
            name: until_nul(&raw.name),
            capability: (raw.major, raw.minor),
            multiprocessors: raw.multiprocessors,
            clock: raw.clock,
            driver: version(raw.driver),
            runtime: version(raw.runtime),
            memory: raw.memory,
            l2: raw.l2,
        })
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// What went wrong since the last call.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: takes nothing but the buffer.
        self.call(|f, text, size| unsafe { (f.synchronize)(text, size) })
    }
}

fn until_nul(text: &[u8]) -> String {
    CStr::from_bytes_until_nul(text).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn find() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot tell where this command lies")?;
    let beside = executable.parent().unwrap_or(Path::new("."));
    let places = [beside.to_path_buf(), beside.join("../gpu/lib"), PathBuf::from("target/gpu/lib")];
    match places.iter().map(|place| place.join(FILE)).find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => {
            let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            bail!("there is no {FILE} in {}; name it with --library", places.join(", "))
        }
    }
}
