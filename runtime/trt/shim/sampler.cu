// The sampler's moves of the state, as `runtime/sampler/src/step.rs` makes them on the CPU and bit for bit
// equal to it: the rounding of every operation is written out, because a contraction to a fused multiply-add
// rounds once where the CPU rounds twice.
//
// The state x is f64; noise, velocity and the network's input are f32. Everything is elementwise, so layouts
// do not matter. Nothing but pointers and counts enters a captured graph: which step it is and the step's times are
// read from the device, so that one graph serves all steps and the host has nothing to do between them.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "error.h"

namespace {

constexpr int kThreads = 256;
// Enough to fill any GPU; each thread goes on at the grid's stride.
constexpr int64_t kMostBlocks = 4096;

__device__ int64_t firstElement() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

__device__ int64_t stride() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__device__ float roundToBf16(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }

// The schedule of turbo_trt.h, whose times follow it; and the step that it is at, which is never past the last.
struct Schedule {
    int64_t next;
    int64_t last;
};

__device__ int64_t stepOf(Schedule const* schedule) { return min(schedule->next, schedule->last); }

__device__ double const* timesOf(Schedule const* schedule) { return reinterpret_cast<double const*>(schedule + 1); }

__global__ void initialKernel(double* __restrict__ x, float const* __restrict__ noise,
    Schedule const* __restrict__ schedule, int64_t count) {
    double const t = timesOf(schedule)[0];
    for (int64_t i = firstElement(); i < count; i += stride()) {
        x[i] = __dmul_rn(static_cast<double>(noise[i]), t);
    }
}

template <bool kBf16>
__global__ void inputKernel(float* __restrict__ input, double const* __restrict__ x, int64_t count) {
    for (int64_t i = firstElement(); i < count; i += stride()) {
        float const value = __double2float_rn(x[i]);
        input[i] = kBf16 ? roundToBf16(value) : value;
    }
}

__global__ void rowKernel(uint32_t* __restrict__ row, uint32_t const* __restrict__ table,
    Schedule const* __restrict__ schedule, int64_t count) {
    table += stepOf(schedule) * count;
    for (int64_t i = firstElement(); i < count; i += stride()) row[i] = table[i];
}

__global__ void sdeKernel(double* __restrict__ x, float const* __restrict__ v,
    float const* __restrict__ noise, Schedule const* __restrict__ schedule, int64_t count) {
    int64_t const step = stepOf(schedule);
    double const t = timesOf(schedule)[step];
    double const next = timesOf(schedule)[step + 1];
    noise += step * count;
    double const rest = __dsub_rn(1.0, next);
    float const nextF32 = __double2float_rn(next);
    for (int64_t i = firstElement(); i < count; i += stride()) {
        double const data = __dsub_rn(x[i], __dmul_rn(t, static_cast<double>(v[i])));
        float const fresh = __fmul_rn(nextF32, noise[i]);
        x[i] = __dadd_rn(__dmul_rn(rest, data), static_cast<double>(fresh));
    }
}

__global__ void odeKernel(
    double* __restrict__ x, float const* __restrict__ v, Schedule const* __restrict__ schedule, int64_t count) {
    double const* const times = timesOf(schedule) + stepOf(schedule);
    double const step = __dsub_rn(times[0], times[1]);
    for (int64_t i = firstElement(); i < count; i += stride()) {
        x[i] = __dsub_rn(x[i], __dmul_rn(step, static_cast<double>(v[i])));
    }
}

__global__ void advanceKernel(Schedule* schedule) { ++schedule->next; }

__global__ void roundKernel(float* __restrict__ values, int64_t count) {
    for (int64_t i = firstElement(); i < count; i += stride()) values[i] = roundToBf16(values[i]);
}

// Launches a kernel over `count` elements.
template <class Kernel, class... Arguments>
int32_t launch(char const* name, Kernel kernel, int64_t count, void* stream, Arguments... arguments) {
    if (count <= 0) return kTurboTrtOk;
    int64_t const needed = (count + kThreads - 1) / kThreads;
    auto const blocks = static_cast<unsigned>(needed < kMostBlocks ? needed : kMostBlocks);
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments..., count);
    return turbo::checkCuda(name, cudaGetLastError());
}

}  // namespace

int32_t turbo_trt_sampler_initial(
    double* x, float const* noise, void const* schedule, int64_t count, void* stream) {
    return launch("sampler_initial", initialKernel, count, stream, x, noise, static_cast<Schedule const*>(schedule));
}

int32_t turbo_trt_sampler_input(float* input, double const* x, int32_t bf16, int64_t count, void* stream) {
    return bf16 != 0 ? launch("sampler_input", inputKernel<true>, count, stream, input, x)
                     : launch("sampler_input", inputKernel<false>, count, stream, input, x);
}

int32_t turbo_trt_sampler_row(
    uint32_t* row, uint32_t const* table, void const* schedule, int64_t count, void* stream) {
    return launch("sampler_row", rowKernel, count, stream, row, table, static_cast<Schedule const*>(schedule));
}

int32_t turbo_trt_sampler_sde(
    double* x, float const* v, float const* noise, void const* schedule, int64_t count, void* stream) {
    return launch("sampler_sde", sdeKernel, count, stream, x, v, noise, static_cast<Schedule const*>(schedule));
}

int32_t turbo_trt_sampler_ode(double* x, float const* v, void const* schedule, int64_t count, void* stream) {
    return launch("sampler_ode", odeKernel, count, stream, x, v, static_cast<Schedule const*>(schedule));
}

int32_t turbo_trt_sampler_advance(void* schedule, void* stream) {
    advanceKernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<Schedule*>(schedule));
    return turbo::checkCuda("sampler_advance", cudaGetLastError());
}

int32_t turbo_trt_round_bf16(float* values, int64_t count, void* stream) {
    return launch("round_bf16", roundKernel, count, stream, values);
}
