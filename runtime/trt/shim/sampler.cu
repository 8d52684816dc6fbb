// The sampler's moves of the state, as `runtime/sampler/src/step.rs` makes them on the CPU and bit for bit
// equal to it: the rounding of every operation is written out, because a contraction to a fused multiply-add
// rounds once where the CPU rounds twice.
//
// The state x is f64; noise, velocity and the network's input are f32. Everything is elementwise, so layouts
// do not matter. Nothing but pointers and the count enters a captured graph: the step's times are read from
// the device.
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

__global__ void initialKernel(double* __restrict__ x, float const* __restrict__ noise,
    double const* __restrict__ times, int64_t count) {
    double const t = times[0];
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

__global__ void sdeKernel(double* __restrict__ x, float const* __restrict__ v,
    float const* __restrict__ noise, double const* __restrict__ times, int64_t count) {
    double const t = times[0];
    double const next = times[1];
    double const rest = __dsub_rn(1.0, next);
    float const nextF32 = __double2float_rn(next);
    for (int64_t i = firstElement(); i < count; i += stride()) {
        double const data = __dsub_rn(x[i], __dmul_rn(t, static_cast<double>(v[i])));
        float const fresh = __fmul_rn(nextF32, noise[i]);
        x[i] = __dadd_rn(__dmul_rn(rest, data), static_cast<double>(fresh));
    }
}

__global__ void odeKernel(
    double* __restrict__ x, float const* __restrict__ v, double const* __restrict__ times, int64_t count) {
    double const step = __dsub_rn(times[0], times[1]);
    for (int64_t i = firstElement(); i < count; i += stride()) {
        x[i] = __dsub_rn(x[i], __dmul_rn(step, static_cast<double>(v[i])));
    }
}

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
    double* x, float const* noise, double const* times, int64_t count, void* stream) {
    return launch("sampler_initial", initialKernel, count, stream, x, noise, times);
}

int32_t turbo_trt_sampler_input(float* input, double const* x, int32_t bf16, int64_t count, void* stream) {
    return bf16 != 0 ? launch("sampler_input", inputKernel<true>, count, stream, input, x)
                     : launch("sampler_input", inputKernel<false>, count, stream, input, x);
}

int32_t turbo_trt_sampler_sde(
    double* x, float const* v, float const* noise, double const* times, int64_t count, void* stream) {
    return launch("sampler_sde", sdeKernel, count, stream, x, v, noise, times);
}

int32_t turbo_trt_sampler_ode(double* x, float const* v, double const* times, int64_t count, void* stream) {
    return launch("sampler_ode", odeKernel, count, stream, x, v, times);
}

int32_t turbo_trt_round_bf16(float* values, int64_t count, void* stream) {
    return launch("round_bf16", roundKernel, count, stream, values);
}
