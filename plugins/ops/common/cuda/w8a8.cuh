// y = activation((q * s) @ (w * ws)^T + bias): eight-bit matrix product with f32 scales of 128 x 128 blocks, the body of the
// W8A8 linears (TurboDiffusion `ops/gemm`). What becomes of the outputs is an epilogue's.
#pragma once

#include "op.h"
#include "w8a8_choice.h"
#include "w8a8_hopper.cuh"
#include "w8a8_portable.cuh"

namespace turbo::w8a8 {

// The weights that come with input `first` and the two after it.
inline Weights weights(Call const& call, int32_t first) {
    return {static_cast<int8_t const*>(call.in[first].data),
            static_cast<float const*>(call.in[first + 1].data),
            static_cast<float const*>(call.in[first + 2].data)};
}

// The operands, the first five inputs of every W8A8 linear.
inline Operands operands(Call const& call, bool gelu) {
    Weights const own = weights(call, 2);
    int64_t const k = call.in[0].dim[1];
    return {static_cast<int8_t const*>(call.in[0].data),
            static_cast<float const*>(call.in[1].data),
            own,
            static_cast<int32_t>(call.in[0].dim[0]),
            static_cast<int32_t>(call.in[2].dim[0]),
            static_cast<int32_t>(k),
            gelu,
            aligned(own.bias, 4),
            aligned(own.w, k)};
}

// Whether the kernels take the operands' sizes, for one linear or several.
inline Status check(Call const& call, int64_t linears = 1) {
    int64_t const k = call.in[0].dim[1];
    if (k < 1 || k > INT32_MAX - 3 * kBlock) return {"axis `k` must be at least 1 and below 2^31 - 384"};
    return checkSizes(call.in[0].dim[0], call.in[2].dim[0], linears);
}

// Computes the linear on the kernel that suits it and the device; with kHalf, outputs take 16 bits or 8.
template <Format kFormat, bool kHalf, class Epilogue>
Status launchKernel(Operands const& x, Epilogue const& epilogue, cudaStream_t stream) {
    if (x.m == 0 || x.n == 0) return {};
    hopper::Device device;
    cudaError_t error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    bool const wide = aligned(x.q, x.k) && x.wideWeights && x.wideBias && epilogue.wide;
    Problem const problem{x.m, x.n, x.k, wide, Epilogue::kWholeBlocks};
    if constexpr (kHalf) {
        if (choose(problem, {device.isHopper, false}) == Kernel::kWgmma) {
            return wgmma::launch<kFormat>(x, epilogue, device.multiprocessors, stream);
        }
    }
    if constexpr (Epilogue::kWholeBlocks) {
        bool clusters = false;
        if (device.mayCluster) error = portable::findClusters<kFormat, Epilogue>(clusters);
        if (error != cudaSuccess) return {nullptr, error};
        bool const pair = choose(problem, {false, clusters}) == Kernel::kPair;
        return pair ? portable::launch<portable::Pair, kFormat>(x, epilogue, stream)
                    : portable::launch<portable::Tall, kFormat>(x, epilogue, stream);
    } else {
        return portable::launch<portable::Short, kFormat>(x, epilogue, stream);
    }
}

}  // namespace turbo::w8a8
