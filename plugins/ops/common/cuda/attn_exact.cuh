// Softmax attention in the activation type (FlashAttention-2, arXiv:2307.08691), dense or over kept key
// blocks, with the linear branch of SLA where there is one.
#pragma once

#include "attn_linear.cuh"

namespace turbo::attn {

constexpr int kExactTile = 64;
constexpr int kExactHalf = kExactTile * kRowChunks;  // chunks of one tile of keys, or of values
// Two stages of keys and values; less than what the projected sums of the linear branch need.
constexpr size_t kExactShared = 4 * kExactHalf * sizeof(uint4);
static_assert(kExactShared >= kStateSize * sizeof(uint16_t) && kExactShared <= 99 * 1024);

template <class T, bool kLinear>
__global__ void __launch_bounds__(kMaxThreads)
    attendExact(Shape shape, T const* q, T const* k, T const* v, T* o, Kept kept, int32_t blockK,
                Linear<T> linear) {
    extern __shared__ uint4 shared[];
    int const lane = threadIdx.x % 32;
    Rows<T const> const keyRows(k, shape.s, shape, blockIdx.y, blockIdx.z);
    Rows<T const> const valueRows(v, shape.s, shape, blockIdx.y, blockIdx.z);
    float const unit = kLog2e * rsqrtf(static_cast<float>(shape.d));
    Queries queries;
    loadQueries(queries, Rows<T const>(q, shape.l, shape, blockIdx.y, blockIdx.z), warpQuery());
    Softmax softmax;
    KeyTiles<kExactTile> tiles(kept, blockK, shape.s, blockIdx.x, gridDim.x);
    uint4* stage = shared;
    auto const load = [&](uint4* to, int32_t tile) {
        loadRows(to, keyRows, tile * kExactTile, kExactTile);
        loadRows(to + kExactHalf, valueRows, tile * kExactTile, kExactTile);
    };
    int32_t tile = tiles.next();
    if (tile >= 0) load(stage, tile);
    while (tile >= 0) {
        copyWait();
        // Everybody's copies are there, and everybody is done with the other stage.
        __syncthreads();
        uint4 const* const keys = stage;
        stage = shared + (stage == shared ? 2 * kExactHalf : 0);
        int32_t const next = tiles.next();
        if (next >= 0) load(stage, next);
        float scores[kExactTile / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
            for (int n = 0; n < kExactTile / 16; ++n) {
                uint32_t b[4];
                int const key = n * 16 + lane % 8 + lane / 16 * 8;
                loadMatrices(b, keys + rowChunk(key, step * 2 + lane / 8 % 2));
                mma<T>(scores[2 * n], queries[step], b[0], b[1]);
                mma<T>(scores[2 * n + 1], queries[step], b[2], b[3]);
            }
        }
        maskKeys(scores, shape.s - tile * kExactTile);
        softmax.step(scores, unit, 0.0f, [](float p) { return p; });
        softmax.addValues<T>(scores, keys + kExactHalf);
        tile = next;
    }
    softmax.normalise();
    if constexpr (kLinear) addLinear(softmax, queries, linear, shape, shared);
    softmax.store(Rows<T>(o, shape.l, shape, blockIdx.y, blockIdx.z));
}

// Enqueues the attention of blocks of blockQ queries to blocks of blockK keys of a call, q, k and v its first inputs.
template <bool kLinear, class T>
Status launchExact(Shape const& shape, Call const& call, Kept const& kept, int32_t blockQ, int32_t blockK,
                   Linear<T> const& linear, cudaStream_t stream) {
    auto const* const q = static_cast<T const*>(call.in[0].data);
    auto const* const k = static_cast<T const*>(call.in[1].data);
    auto const* const v = static_cast<T const*>(call.in[2].data);
    auto* const o = static_cast<T*>(call.out[0].data);
    dim3 const grid(ceilDiv(shape.l, blockQ), shape.heads, shape.batch);
    return enqueue(attendExact<T, kLinear>, grid, blockQ / kWarpQueries * 32, kExactShared, {stream, false}, shape, q, k,
                   v, o, kept, blockK, linear);
}

}  // namespace turbo::attn
