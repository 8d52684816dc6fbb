// CUDA's runtime: GPUs, memory, streams, events and graphs.
#include <cuda_runtime_api.h>

#include <cstring>

#include "error.h"

namespace {

using turbo::checkCuda;

cudaStream_t asStream(void* stream) { return static_cast<cudaStream_t>(stream); }

cudaEvent_t asEvent(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

int32_t turbo_trt_cuda_version(void) { return CUDART_VERSION; }

int32_t turbo_trt_gpu_count(int32_t* count) {
    return checkCuda("cudaGetDeviceCount", cudaGetDeviceCount(count));
}

int32_t turbo_trt_gpu_info(int32_t index, TurboTrtGpu* gpu) {
    cudaDeviceProp properties;
    int32_t const code = checkCuda("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index));
    if (code != kTurboTrtOk) return code;
    static_assert(sizeof(gpu->name) == sizeof(properties.name), "names fit");
    std::memcpy(gpu->name, properties.name, sizeof(gpu->name));
    gpu->name[sizeof(gpu->name) - 1] = '\0';
    gpu->major = properties.major;
    gpu->minor = properties.minor;
    gpu->multiprocessors = properties.multiProcessorCount;
    gpu->threads_per_multiprocessor = properties.maxThreadsPerMultiProcessor;
    gpu->memory = properties.totalGlobalMem;
    return kTurboTrtOk;
}

int32_t turbo_trt_gpu_select(int32_t index) { return checkCuda("cudaSetDevice", cudaSetDevice(index)); }

int32_t turbo_trt_driver_version(int32_t* version) {
    return checkCuda("cudaDriverGetVersion", cudaDriverGetVersion(version));
}

int32_t turbo_trt_memory_info(uint64_t* free, uint64_t* total) {
    size_t freeBytes = 0;
    size_t totalBytes = 0;
    int32_t const code = checkCuda("cudaMemGetInfo", cudaMemGetInfo(&freeBytes, &totalBytes));
    *free = freeBytes;
    *total = totalBytes;
    return code;
}

int32_t turbo_trt_device_alloc(size_t bytes, void** out) {
    return checkCuda("cudaMalloc", cudaMalloc(out, bytes));
}

int32_t turbo_trt_device_free(void* memory) { return checkCuda("cudaFree", cudaFree(memory)); }

int32_t turbo_trt_pinned_alloc(size_t bytes, void** out) {
    return checkCuda("cudaMallocHost", cudaMallocHost(out, bytes));
}

int32_t turbo_trt_pinned_free(void* memory) { return checkCuda("cudaFreeHost", cudaFreeHost(memory)); }

int32_t turbo_trt_copy(int32_t kind, void* to, void const* from, size_t bytes, void* stream) {
    cudaMemcpyKind const direction = kind == kTurboTrtToDevice ? cudaMemcpyHostToDevice
        : kind == kTurboTrtToHost                               ? cudaMemcpyDeviceToHost
                                                                : cudaMemcpyDeviceToDevice;
    return checkCuda("cudaMemcpyAsync", cudaMemcpyAsync(to, from, bytes, direction, asStream(stream)));
}

int32_t turbo_trt_copy_2d(
    void* to, size_t to_pitch, void const* from, size_t from_pitch, size_t width, size_t rows, void* stream) {
    return checkCuda("cudaMemcpy2DAsync",
        cudaMemcpy2DAsync(
            to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDeviceToDevice, asStream(stream)));
}

int32_t turbo_trt_fill(void* memory, int32_t byte, size_t bytes, void* stream) {
    return checkCuda("cudaMemsetAsync", cudaMemsetAsync(memory, byte, bytes, asStream(stream)));
}

int32_t turbo_trt_stream_create(void** out) {
    cudaStream_t stream = nullptr;
    int32_t const code =
        checkCuda("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    *out = stream;
    return code;
}

int32_t turbo_trt_stream_destroy(void* stream) {
    return checkCuda("cudaStreamDestroy", cudaStreamDestroy(asStream(stream)));
}

int32_t turbo_trt_stream_synchronize(void* stream) {
    return checkCuda("cudaStreamSynchronize", cudaStreamSynchronize(asStream(stream)));
}

int32_t turbo_trt_stream_wait(void* stream, void* event) {
    return checkCuda("cudaStreamWaitEvent", cudaStreamWaitEvent(asStream(stream), asEvent(event), 0));
}

int32_t turbo_trt_event_create(void** out) {
    cudaEvent_t event = nullptr;
    int32_t const code = checkCuda("cudaEventCreate", cudaEventCreate(&event));
    *out = event;
    return code;
}

int32_t turbo_trt_event_destroy(void* event) {
    return checkCuda("cudaEventDestroy", cudaEventDestroy(asEvent(event)));
}

int32_t turbo_trt_event_record(void* event, void* stream) {
    return checkCuda("cudaEventRecord", cudaEventRecord(asEvent(event), asStream(stream)));
}

int32_t turbo_trt_event_query(void* event, int32_t* done) {
    cudaError_t const state = cudaEventQuery(asEvent(event));
    *done = state == cudaSuccess ? 1 : 0;
    if (state != cudaErrorNotReady) return checkCuda("cudaEventQuery", state);
    (void)cudaGetLastError();
    return kTurboTrtOk;
}

int32_t turbo_trt_event_synchronize(void* event) {
    return checkCuda("cudaEventSynchronize", cudaEventSynchronize(asEvent(event)));
}

int32_t turbo_trt_event_elapsed(void* from, void* to, float* milliseconds) {
    return checkCuda("cudaEventElapsedTime", cudaEventElapsedTime(milliseconds, asEvent(from), asEvent(to)));
}

int32_t turbo_trt_capture_begin(void* stream) {
    // Thread-local: other threads may allocate meanwhile.
    return checkCuda("cudaStreamBeginCapture",
        cudaStreamBeginCapture(asStream(stream), cudaStreamCaptureModeThreadLocal));
}

int32_t turbo_trt_capture_end(void* stream, void** graph) {
    cudaGraph_t captured = nullptr;
    int32_t code = checkCuda("cudaStreamEndCapture", cudaStreamEndCapture(asStream(stream), &captured));
    if (code != kTurboTrtOk) return code;
    cudaGraphExec_t instance = nullptr;
    code = checkCuda("cudaGraphInstantiate", cudaGraphInstantiate(&instance, captured, 0));
    (void)cudaGraphDestroy(captured);
    *graph = instance;
    return code;
}

int32_t turbo_trt_graph_launch(void* graph, void* stream) {
    return checkCuda(
        "cudaGraphLaunch", cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), asStream(stream)));
}

int32_t turbo_trt_graph_destroy(void* graph) {
    return checkCuda("cudaGraphExecDestroy", cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}
