// The C ABI of the shim between Rust and TensorRT with CUDA's runtime.
//
// One shim is compiled for each major version of TensorRT; this header is the same for all. Handles are
// opaque and enumerations are the shim's own, so no number and no virtual table of TensorRT is known outside.
//
// A function that returns int32_t gives kTurboTrtOk or another TurboTrtCode, and then leaves a subject and a
// text for its thread. Device pointers and CUDA handles are void*. Strings are UTF-8 or, for files, the
// system's bytes; those handed out live until the same thread's next failure or until the handle is
// destroyed. A handle is used by one thread at a time.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// Grows with every change of this file.
#define TURBO_TRT_ABI 3

int32_t turbo_trt_abi(void);

// Major version of TensorRT that this shim was compiled for.
int32_t turbo_trt_major(void);

enum TurboTrtCode {
    kTurboTrtOk = 0,
    kTurboTrtInternal = 1,     // an exception or a broken promise
    kTurboTrtLibrary = 2,      // subject: the library that cannot be loaded
    kTurboTrtVersion = 3,      // subject: the library; text: its version as a number
    kTurboTrtPlugins = 4,      // subject: the plugin library
    kTurboTrtParse = 5,        // subject: empty
    kTurboTrtBuild = 6,        // subject: empty
    kTurboTrtInterrupted = 7,  // the progress callback said stop
    kTurboTrtEngine = 8,       // subject: empty; a plan that cannot be loaded
    kTurboTrtRefit = 9,        // subject: empty or the weight
    kTurboTrtRun = 10,         // subject: empty or the tensor
    kTurboTrtCuda = 11,        // subject: the CUDA call
    kTurboTrtMemory = 12,      // subject: the CUDA call; there is not enough memory
};

char const* turbo_trt_error_subject(void);
char const* turbo_trt_error_text(void);

// Log. TensorRT keeps one logger per process, so lines of all handles come together; the newest are kept.
enum TurboTrtLevel {
    kTurboTrtError = 0,
    kTurboTrtWarning = 1,
    kTurboTrtInfo = 2,
    kTurboTrtVerbose = 3,
};

typedef void (*TurboTrtLineFn)(void* user, int32_t level, char const* text);

// The least important level that is kept; warnings at first.
void turbo_trt_log_level(int32_t level);
// Calls `line` for each line since the last call.
void turbo_trt_log_take(TurboTrtLineFn line, void* user);

// Libraries. Once loaded they stay until the process ends.
typedef struct TurboTrtLibrary TurboTrtLibrary;

// Loads libnvinfer from a path, or by a bare name through the loader.
int32_t turbo_trt_library_open(char const* file, TurboTrtLibrary** out);
// Loads libnvonnxparser, which a builder needs and a runtime does not.
int32_t turbo_trt_library_open_parser(TurboTrtLibrary* library, char const* file);
void turbo_trt_library_destroy(TurboTrtLibrary* library);
// Version as major * 10000 + minor * 100 + patch.
int32_t turbo_trt_library_version(TurboTrtLibrary const* library);
// Where the loader found it.
char const* turbo_trt_library_path(TurboTrtLibrary const* library);

// Builder: create, load plugins. It makes networks, one after the other, and outlives them.
typedef struct TurboTrtBuilder TurboTrtBuilder;
typedef struct TurboTrtNetwork TurboTrtNetwork;
typedef struct TurboTrtPlan TurboTrtPlan;

// Once a build was stopped nothing is destroyed any more, since TensorRT's threads may still use it: the process should
// end soon.
int32_t turbo_trt_builder_create(TurboTrtLibrary const* library, TurboTrtBuilder** out);
void turbo_trt_builder_destroy(TurboTrtBuilder* builder);
int32_t turbo_trt_builder_load_plugins(TurboTrtBuilder* builder, char const* file);
// Network: parse a serialized ONNX model, build. The parser finds the model's external data beside the absolute
// `path`: that of TensorRT 10.13 and newer maps the file, an older one reads it.
int32_t turbo_trt_network_parse(
    TurboTrtBuilder* builder, void const* onnx, size_t bytes, char const* path, TurboTrtNetwork** out);
void turbo_trt_network_destroy(TurboTrtNetwork* network);

// `op` is the plugin's name, null for a layer of TensorRT's own.
typedef void (*TurboTrtLayerFn)(void* user, char const* name, char const* op);
int32_t turbo_trt_network_layers(TurboTrtNetwork const* network, TurboTrtLayerFn layer, void* user);

// Where the build stands: `step` of `steps` of a phase, within `parent` (empty for none). Returns whether to
// go on. Called from several threads, one at a time.
typedef int32_t (*TurboTrtProgressFn)(
    void* user, char const* phase, char const* parent, int32_t steps, int32_t step);

typedef struct {
    int32_t strip;             // 1: large weights stay out of the plan; they are refitted, with the same values
    int32_t level;             // optimisation level 0 to 5
    void const* timing_cache;  // of an earlier build, null for none; what does not fit is left unused
    size_t timing_cache_bytes;
    TurboTrtProgressFn progress;  // may be null
    void* user;
} TurboTrtBuildOptions;

int32_t turbo_trt_network_build(
    TurboTrtNetwork* network, TurboTrtBuildOptions const* options, TurboTrtPlan** out);

void turbo_trt_plan_destroy(TurboTrtPlan* plan);
void turbo_trt_plan_bytes(TurboTrtPlan const* plan, void const** data, size_t* bytes);
void turbo_trt_plan_timing_cache(TurboTrtPlan const* plan, void const** data, size_t* bytes);

// Runtime: create, load plugins, deserialize. It outlives its engines, and an engine its contexts and
// refitters.
typedef struct TurboTrtRuntime TurboTrtRuntime;
typedef struct TurboTrtEngine TurboTrtEngine;
typedef struct TurboTrtRefitter TurboTrtRefitter;
typedef struct TurboTrtContext TurboTrtContext;

enum TurboTrtType {
    kTurboTrtF32 = 0,
    kTurboTrtF16 = 1,
    kTurboTrtBf16 = 2,
    kTurboTrtI8 = 3,
    kTurboTrtI32 = 4,
    kTurboTrtI64 = 5,
    kTurboTrtBool = 6,
    kTurboTrtU8 = 7,
    kTurboTrtF8 = 8,
    kTurboTrtOther = 9,
};

#define TURBO_TRT_MAX_RANK 8

typedef struct {
    char const* name;
    int32_t input;  // 1: input, 0: output
    int32_t type;   // TurboTrtType
    int32_t rank;
    int64_t dim[TURBO_TRT_MAX_RANK];
} TurboTrtTensor;

typedef struct {
    int32_t layers;
    int32_t tensors;
    int64_t memory;  // bytes that a context needs
} TurboTrtEngineInfo;

int32_t turbo_trt_runtime_create(TurboTrtLibrary const* library, TurboTrtRuntime** out);
void turbo_trt_runtime_destroy(TurboTrtRuntime* runtime);
int32_t turbo_trt_runtime_load_plugins(TurboTrtRuntime* runtime, char const* file);
int32_t turbo_trt_engine_deserialize(
    TurboTrtRuntime* runtime, void const* plan, size_t bytes, TurboTrtEngine** out);
void turbo_trt_engine_destroy(TurboTrtEngine* engine);
void turbo_trt_engine_info(TurboTrtEngine const* engine, TurboTrtEngineInfo* info);
int32_t turbo_trt_engine_tensor(TurboTrtEngine const* engine, int32_t index, TurboTrtTensor* tensor);

// Refit: set every weight, then run; TensorRT does not ask for what was not set. No context of the engine is at
// work meanwhile.
typedef void (*TurboTrtWeightFn)(void* user, char const* name, int32_t type, int64_t count);

int32_t turbo_trt_refitter_create(TurboTrtEngine* engine, TurboTrtRefitter** out);
void turbo_trt_refitter_destroy(TurboTrtRefitter* refitter);
int32_t turbo_trt_refitter_weights(TurboTrtRefitter* refitter, TurboTrtWeightFn weight, void* user);
// `data` stays where it is until the refitter is destroyed.
int32_t turbo_trt_refitter_set(
    TurboTrtRefitter* refitter, char const* name, int32_t type, void const* data, int64_t count);
int32_t turbo_trt_refitter_run(TurboTrtRefitter* refitter);

typedef void (*TurboTrtTimeFn)(void* user, char const* layer, float milliseconds);

// A context works in memory that the caller gives it.
int32_t turbo_trt_context_create(TurboTrtEngine* engine, TurboTrtContext** out);
void turbo_trt_context_destroy(TurboTrtContext* context);
void turbo_trt_context_set_memory(TurboTrtContext* context, void* memory, int64_t bytes);
int32_t turbo_trt_context_set_address(TurboTrtContext* context, char const* tensor, void* address);
int32_t turbo_trt_context_enqueue(TurboTrtContext* context, void* stream);
// Measures every layer of the runs that follow; such a run waits for its end and cannot be captured.
void turbo_trt_context_measure(TurboTrtContext* context, int32_t on);
// Times of the layers since the last call, run after run.
void turbo_trt_context_take_times(TurboTrtContext* context, TurboTrtTimeFn time, void* user);

// GPUs. `free` and `total` memory are of the thread's current GPU.
typedef struct {
    char name[256];
    int32_t major;
    int32_t minor;
    int32_t multiprocessors;
    int32_t threads_per_multiprocessor;
    uint64_t memory;
} TurboTrtGpu;

// CUDA version of the shim's runtime as major * 1000 + minor * 10; a driver of the same major serves.
int32_t turbo_trt_cuda_version(void);
int32_t turbo_trt_gpu_count(int32_t* count);
int32_t turbo_trt_gpu_info(int32_t index, TurboTrtGpu* gpu);
int32_t turbo_trt_gpu_select(int32_t index);
// CUDA version of the driver as major * 1000 + minor * 10; 0 where there is no driver.
int32_t turbo_trt_driver_version(int32_t* version);
int32_t turbo_trt_memory_info(uint64_t* free, uint64_t* total);

// Memory.
int32_t turbo_trt_device_alloc(size_t bytes, void** out);
int32_t turbo_trt_device_free(void* memory);
int32_t turbo_trt_pinned_alloc(size_t bytes, void** out);
int32_t turbo_trt_pinned_free(void* memory);

enum TurboTrtCopy {
    kTurboTrtToDevice = 0,
    kTurboTrtToHost = 1,
    kTurboTrtOnDevice = 2,
};

// All copies are enqueued on a stream.
int32_t turbo_trt_copy(int32_t kind, void* to, void const* from, size_t bytes, void* stream);
// Copies `rows` rows of `width` bytes on the device; rows start `to_pitch` and `from_pitch` bytes apart.
int32_t turbo_trt_copy_2d(
    void* to, size_t to_pitch, void const* from, size_t from_pitch, size_t width, size_t rows, void* stream);
int32_t turbo_trt_fill(void* memory, int32_t byte, size_t bytes, void* stream);

// Streams and events. Streams do not wait for the legacy default stream.
int32_t turbo_trt_stream_create(void** out);
int32_t turbo_trt_stream_destroy(void* stream);
int32_t turbo_trt_stream_synchronize(void* stream);
int32_t turbo_trt_stream_wait(void* stream, void* event);
int32_t turbo_trt_event_create(void** out);
int32_t turbo_trt_event_destroy(void* event);
int32_t turbo_trt_event_record(void* event, void* stream);
int32_t turbo_trt_event_query(void* event, int32_t* done);
int32_t turbo_trt_event_synchronize(void* event);
int32_t turbo_trt_event_elapsed(void* from, void* to, float* milliseconds);

// Graphs: what is enqueued on a stream between begin and end, instantiated. After a failed end nothing is
// captured.
int32_t turbo_trt_capture_begin(void* stream);
int32_t turbo_trt_capture_end(void* stream, void** graph);
int32_t turbo_trt_graph_launch(void* graph, void* stream);
int32_t turbo_trt_graph_destroy(void* graph);

// The sampler's arithmetic, bit for bit that of the CPU. x is f64, everything else f32, of `count` elements. Its schedule
// lies on the device, so that one captured graph serves all steps and nothing has to be said to it between them:
//   int64_t next             the step that comes next, from 0
//   int64_t last             the last step
//   double  times[last + 2]  when each step begins, and the end
// t and t_next are the times of that step, which is the last one where `next` is past it.

// x = noise * times[0]
int32_t turbo_trt_sampler_initial(
    double* x, float const* noise, void const* schedule, int64_t count, void* stream);
// input = x, rounded to bf16 values where `bf16` is 1
int32_t turbo_trt_sampler_input(float* input, double const* x, int32_t bf16, int64_t count, void* stream);
// row = table[step], `count` words of four bytes
int32_t turbo_trt_sampler_row(
    uint32_t* row, uint32_t const* table, void const* schedule, int64_t count, void* stream);
// x = (1 - t_next) * (x - t * v) + f32(t_next) * noise[step]
int32_t turbo_trt_sampler_sde(
    double* x, float const* v, float const* noise, void const* schedule, int64_t count, void* stream);
// x = x - (t - t_next) * v
int32_t turbo_trt_sampler_ode(double* x, float const* v, void const* schedule, int64_t count, void* stream);
// next = next + 1
int32_t turbo_trt_sampler_advance(void* schedule, void* stream);
// values = values rounded to bf16
int32_t turbo_trt_round_bf16(float* values, int64_t count, void* stream);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
