// The linear branch of SLA (attn_linear.cuh) in the kernels for sm_90a: products with the state by wgmma.
#pragma once

#include "attn_linear.cuh"
#include "attn_rows_hopper.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

// What is in shared memory once keys and values are done with, from a multiple of hopper::kAlignment on.
struct Ending {
    uint8_t state[kStateSize * sizeof(uint16_t)];  // of the linear branch, in tiles
    uint4 rows[kQueryChunks];                      // of queries, and of outputs
    float2 featureSums[kHeadDim / 2];
    float2 bias[kHeadDim / 2];
};

#if TURBO_HOPPER

// Starts to fetch what the branch has for this head, once everybody is done with what lay there: in place of the state
// only what the copy engine wrote, so that no write of a thread can be late. The state is there when `barrier` says so,
// the rest after a barrier of the threads.
template <class T>
__device__ inline void fetchLinear(Ending& ending, Linear<T> const& linear, Shape const& shape, uint32_t barrier) {
    int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) {
        hopper::expectBytes(barrier, sizeof(ending.state));
        hopper::copyBytes(
            sharedAddress(ending.state), linear.projected + head * kStateSize, sizeof(ending.state), barrier);
    }
    static_assert(kHeadDim == hopper::kWarpgroup);
    int const channel = threadIdx.x;
    float const bias = channel < shape.d ? linear.bias[channel] : 0.0f;
    reinterpret_cast<float*>(ending.featureSums)[channel] = linear.featureSums[head * kHeadDim + channel];
    reinterpret_cast<float*>(ending.bias)[channel] = bias;
}

// Scales outputs, those of this lane's two channels in out[n] by scale(n), and adds the branch's bias to them.
template <class Scale>
__device__ inline void addBias(Softmax& softmax, Ending const& ending, Scale scale) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
        float2 const factor = scale(n), bias = ending.bias[n * 4 + threadIdx.x % 4];
        float(&out)[4] = softmax.out[n];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[i] = i % 2 == 0 ? fmaf(out[i], factor.x, bias.x) : fmaf(out[i], factor.y, bias.y);
        }
    }
}

// Adds the branch but for its bias to the outputs of a warp's queries, which become their features. Products for
// kAtOnce tiles of channels are under way together, as registers allow.
template <class T, int kAtOnce>
__device__ inline void addLinear(
    Softmax& softmax, Queries& q, Ending const& ending, Shape const& shape, uint32_t barrier) {
    constexpr int kTileRow = kStateTile * sizeof(T), kTileBytes = kHeadDim * kTileRow;
    constexpr int kTiles = kHeadDim / kStateTile;
    static_assert(kTiles % kAtOnce == 0);
    float factor[2];
    toFeatures<T>(q, factor, ending.featureSums, shape);
    uint64_t const state = hopper::describeColumns<kTileRow>(sharedAddress(ending.state), kTileBytes);
    hopper::wait(barrier, 0);
    hopper::settle(q);
#pragma unroll
    for (int first = 0; first < kTiles; first += kAtOnce) {
        float sums[kAtOnce][kStateTile / 2];
        hopper::beginProducts();
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
            for (int step = 0; step < kHeadDim / 16; ++step) {
                uint64_t const at = state + ((first + i) * kTileBytes + step * 16 * kTileRow) / 16;
                hopper::multiplyColumns(T{}, sums[i], q[step], at, step > 0);
            }
        }
        hopper::commitProducts();
        hopper::waitProducts<0>();
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
            hopper::settle(sums[i]);
#pragma unroll
            for (int j = 0; j < kStateTile / 2; ++j) {
                float& to = softmax.out[(first + i) * (kStateTile / 8) + j / 4][j % 4];
                to = fmaf(sums[i][j], factor[j % 4 / 2], to);
            }
        }
    }
}

#endif  // TURBO_HOPPER

}  // namespace turbo::attn::wgmma
