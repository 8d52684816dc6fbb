//! The shim's C ABI, as `shim/turbo_trt.h` has it.

use std::ffi::{c_char, c_void};

/// Changes with every change of the header.
pub(crate) const ABI: i32 = 3;

pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const LIBRARY: i32 = 2;
    pub(crate) const VERSION: i32 = 3;
    pub(crate) const PLUGINS: i32 = 4;
    pub(crate) const PARSE: i32 = 5;
    pub(crate) const BUILD: i32 = 6;
    pub(crate) const INTERRUPTED: i32 = 7;
    pub(crate) const ENGINE: i32 = 8;
    pub(crate) const REFIT: i32 = 9;
    pub(crate) const RUN: i32 = 10;
    pub(crate) const CUDA: i32 = 11;
    pub(crate) const MEMORY: i32 = 12;
}

pub(crate) const TO_DEVICE: i32 = 0;
pub(crate) const TO_HOST: i32 = 1;
pub(crate) const ON_DEVICE: i32 = 2;

const MAX_RANK: usize = 8;

/// A handle of the shim or a pointer of CUDA.
pub(crate) type Raw = *mut c_void;

pub(crate) type LineFn = unsafe extern "C" fn(user: Raw, level: i32, text: *const c_char);
pub(crate) type LayerFn = unsafe extern "C" fn(user: Raw, name: *const c_char, op: *const c_char);
pub(crate) type WeightFn = unsafe extern "C" fn(user: Raw, name: *const c_char, dtype: i32, count: i64);
pub(crate) type TimeFn = unsafe extern "C" fn(user: Raw, layer: *const c_char, milliseconds: f32);
pub(crate) type ProgressFn = unsafe extern "C" fn(
    user: Raw,
    phase: *const c_char,
    parent: *const c_char,
    steps: i32,
    step: i32,
) -> i32;

#[repr(C)]
pub(crate) struct RawBuildOptions {
    pub(crate) strip: i32,
    pub(crate) level: i32,
    pub(crate) timing_cache: *const c_void,
    pub(crate) timing_cache_bytes: usize,
    pub(crate) progress: Option<ProgressFn>,
    pub(crate) user: Raw,
}

#[repr(C)]
pub(crate) struct RawTensor {
    pub(crate) name: *const c_char,
    pub(crate) input: i32,
    pub(crate) dtype: i32,
    pub(crate) rank: i32,
    pub(crate) dim: [i64; MAX_RANK],
}

impl RawTensor {
    pub(crate) const EMPTY: RawTensor =
        RawTensor { name: std::ptr::null(), input: 0, dtype: 0, rank: 0, dim: [0; MAX_RANK] };
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct RawEngineInfo {
    pub(crate) layers: i32,
    pub(crate) tensors: i32,
    pub(crate) memory: i64,
}

#[repr(C)]
pub(crate) struct RawGpu {
    pub(crate) name: [c_char; 256],
    pub(crate) major: i32,
    pub(crate) minor: i32,
    pub(crate) multiprocessors: i32,
    pub(crate) threads_per_multiprocessor: i32,
    pub(crate) memory: u64,
}

impl RawGpu {
    pub(crate) const EMPTY: RawGpu = RawGpu {
        name: [0; 256],
        major: 0,
        minor: 0,
        multiprocessors: 0,
        threads_per_multiprocessor: 0,
        memory: 0,
    };
}

/// Declares the table of functions and how it is read from a library. Symbols are `turbo_trt_` and the
/// field's name.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($argument: $type),*) $(-> $result)?,)*
        }

        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        impl Api {
            /// Finds every function.
            ///
            /// # Safety
            /// The library is the shim of this [`ABI`] and stays loaded as long as the table is used.
            pub(crate) unsafe fn load(library: &libloading::Library) -> Result<Api, libloading::Error> {
                Ok(Api {
                    $(
                        // SAFETY: the caller says that this is the shim, whose header declares this
                        // signature.
                        $name: *unsafe { library.get(concat!("turbo_trt_", stringify!($name))) }?,
                    )*
                })
            }
        }
    };
}

api! {
    fn major() -> i32;
    fn error_subject() -> *const c_char;
    fn error_text() -> *const c_char;
    fn log_level(level: i32);
    fn log_take(line: LineFn, user: Raw);

    fn library_open(file: *const c_char, out: *mut Raw) -> i32;
    fn library_open_parser(library: Raw, file: *const c_char) -> i32;
    fn library_destroy(library: Raw);
    fn library_version(library: Raw) -> i32;
    fn library_path(library: Raw) -> *const c_char;

    fn builder_create(library: Raw, out: *mut Raw) -> i32;
    fn builder_destroy(builder: Raw);
    fn builder_load_plugins(builder: Raw, file: *const c_char) -> i32;
    fn network_parse(
        builder: Raw,
        onnx: *const c_void,
        bytes: usize,
        path: *const c_char,
        out: *mut Raw,
    ) -> i32;
    fn network_destroy(network: Raw);
    fn network_layers(network: Raw, layer: LayerFn, user: Raw) -> i32;
    fn network_build(network: Raw, options: *const RawBuildOptions, out: *mut Raw) -> i32;
    fn plan_destroy(plan: Raw);
    fn plan_bytes(plan: Raw, data: *mut *const c_void, bytes: *mut usize);
    fn plan_timing_cache(plan: Raw, data: *mut *const c_void, bytes: *mut usize);

    fn runtime_create(library: Raw, out: *mut Raw) -> i32;
    fn runtime_destroy(runtime: Raw);
    fn runtime_load_plugins(runtime: Raw, file: *const c_char) -> i32;
    fn engine_deserialize(runtime: Raw, plan: *const c_void, bytes: usize, out: *mut Raw) -> i32;
    fn engine_destroy(engine: Raw);
    fn engine_info(engine: Raw, info: *mut RawEngineInfo);
    fn engine_tensor(engine: Raw, index: i32, tensor: *mut RawTensor) -> i32;
    fn refitter_create(engine: Raw, out: *mut Raw) -> i32;
    fn refitter_destroy(refitter: Raw);
    fn refitter_weights(refitter: Raw, weight: WeightFn, user: Raw) -> i32;
    fn refitter_set(
        refitter: Raw,
        name: *const c_char,
        dtype: i32,
        data: *const c_void,
        count: i64,
    ) -> i32;
    fn refitter_run(refitter: Raw) -> i32;
    fn context_create(engine: Raw, out: *mut Raw) -> i32;
    fn context_destroy(context: Raw);
    fn context_set_memory(context: Raw, memory: Raw, bytes: i64);
    fn context_set_address(context: Raw, tensor: *const c_char, address: Raw) -> i32;
    fn context_enqueue(context: Raw, stream: Raw) -> i32;
    fn context_measure(context: Raw, on: i32);
    fn context_take_times(context: Raw, time: TimeFn, user: Raw);

    fn cuda_version() -> i32;
    fn gpu_count(count: *mut i32) -> i32;
    fn gpu_info(index: i32, gpu: *mut RawGpu) -> i32;
    fn gpu_select(index: i32) -> i32;
    fn driver_version(version: *mut i32) -> i32;
    fn memory_info(free: *mut u64, total: *mut u64) -> i32;

    fn device_alloc(bytes: usize, out: *mut Raw) -> i32;
    fn device_free(memory: Raw) -> i32;
    fn pinned_alloc(bytes: usize, out: *mut Raw) -> i32;
    fn pinned_free(memory: Raw) -> i32;
    fn copy(kind: i32, to: Raw, from: *const c_void, bytes: usize, stream: Raw) -> i32;
    fn copy_2d(
        to: Raw,
        to_pitch: usize,
        from: *const c_void,
        from_pitch: usize,
        width: usize,
        rows: usize,
        stream: Raw,
    ) -> i32;
    fn fill(memory: Raw, byte: i32, bytes: usize, stream: Raw) -> i32;

    fn stream_create(out: *mut Raw) -> i32;
    fn stream_destroy(stream: Raw) -> i32;
    fn stream_synchronize(stream: Raw) -> i32;
    fn stream_wait(stream: Raw, event: Raw) -> i32;
    fn event_create(out: *mut Raw) -> i32;
    fn event_destroy(event: Raw) -> i32;
    fn event_record(event: Raw, stream: Raw) -> i32;
    fn event_query(event: Raw, done: *mut i32) -> i32;
    fn event_synchronize(event: Raw) -> i32;
    fn event_elapsed(from: Raw, to: Raw, milliseconds: *mut f32) -> i32;
    fn capture_begin(stream: Raw) -> i32;
    fn capture_end(stream: Raw, graph: *mut Raw) -> i32;
    fn graph_launch(graph: Raw, stream: Raw) -> i32;
    fn graph_destroy(graph: Raw) -> i32;

    fn sampler_initial(x: Raw, noise: *const c_void, schedule: *const c_void, count: i64, stream: Raw)
    -> i32;
    fn sampler_input(input: Raw, x: *const c_void, bf16: i32, count: i64, stream: Raw) -> i32;
    fn sampler_row(row: Raw, table: *const c_void, schedule: *const c_void, count: i64, stream: Raw) -> i32;
    fn sampler_sde(
        x: Raw,
        v: *const c_void,
        noise: *const c_void,
        schedule: *const c_void,
        count: i64,
        stream: Raw,
    ) -> i32;
    fn sampler_ode(x: Raw, v: *const c_void, schedule: *const c_void, count: i64, stream: Raw) -> i32;
    fn sampler_advance(schedule: Raw, stream: Raw) -> i32;
    fn round_bf16(values: Raw, count: i64, stream: Raw) -> i32;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HEADER: &str = include_str!("../shim/turbo_trt.h");

    #[test]
    fn the_header_is_of_the_same_version() {
        let version = HEADER.lines().find_map(|line| line.strip_prefix("#define TURBO_TRT_ABI "));
        assert_eq!(version, Some(ABI.to_string().as_str()));
    }

    #[test]
    fn the_header_declares_the_same_functions() {
        let declared = |line: &str| {
            let line = line
                .strip_prefix("int32_t ")
                .or(line.strip_prefix("void "))
                .or(line.strip_prefix("char const* "))?;
            Some(line.strip_prefix("turbo_trt_")?.split('(').next()?.to_string())
        };
        let mut declared: BTreeSet<String> = HEADER.lines().filter_map(declared).collect();
        // Asked for before the table is read.
        assert!(declared.remove("abi"));
        assert_eq!(declared, NAMES.iter().map(|name| name.to_string()).collect());
    }

    #[test]
    fn the_header_gives_the_same_numbers() {
        for (name, number) in [
            ("Ok", code::OK),
            ("Library", code::LIBRARY),
            ("Version", code::VERSION),
            ("Plugins", code::PLUGINS),
            ("Parse", code::PARSE),
            ("Build", code::BUILD),
            ("Interrupted", code::INTERRUPTED),
            ("Engine", code::ENGINE),
            ("Refit", code::REFIT),
            ("Run", code::RUN),
            ("Cuda", code::CUDA),
            ("Memory", code::MEMORY),
            ("ToDevice", TO_DEVICE),
            ("ToHost", TO_HOST),
            ("OnDevice", ON_DEVICE),
        ] {
            assert!(HEADER.contains(&format!(" kTurboTrt{name} = {number},")), "{name}");
        }
        assert!(HEADER.contains(&format!("#define TURBO_TRT_MAX_RANK {MAX_RANK}\n")));
    }
}
