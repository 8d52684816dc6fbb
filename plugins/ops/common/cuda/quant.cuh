// Eight-bit values and f32 scales of 128 x 128 blocks: `amax` over the block, at least 1e-8; `s = amax / top`;
// `q = sat8(rne(x * (top / amax)))`, with a top of 128 for INT8 (TurboDiffusion `ops/quant/quant.hpp`) and 448 for E4M3.
#pragma once

#include "elements.cuh"
#include "format.cuh"

namespace turbo {

constexpr int32_t kBlock = 128;
constexpr int32_t kBlockThreads = 256;
constexpr float kLeastAmax = 1e-8f;

// Where one block lies in `[m, k]`. Blocks are numbered along the columns first.
struct BlockPlace {
    int64_t row, column;
    int32_t rows, columns;  // that are inside

    __device__ BlockPlace(int64_t block, int64_t m, int64_t k) {
        int64_t const across = (k + kBlock - 1) / kBlock;
        row = block / across * kBlock;
        column = block % across * kBlock;
        rows = static_cast<int32_t>(m - row < kBlock ? m - row : kBlock);
        columns = static_cast<int32_t>(k - column < kBlock ? k - column : kBlock);
    }
};

// One block over the threads of a CTA: a thread holds `kLanes` columns of every `kStride`th row, as T.
template <class T, int32_t kLanes, bool wide>
struct Block {
    static constexpr int32_t kAcross = kBlock / kLanes;
    static constexpr int32_t kStride = kBlockThreads / kAcross;

    Pack<T, kLanes> x[kBlock / kStride];

    // The thread's first column in the block.
    static __device__ __forceinline__ int32_t column() {
        return static_cast<int32_t>(threadIdx.x) % kAcross * kLanes;
    }

    // Calls `visit(pack, row)` for what the thread holds of the inside.
    template <class Visit>
    __device__ __forceinline__ void forEach(BlockPlace const& place, Visit visit) {
#pragma unroll
        for (int32_t i = 0; i < kBlock / kStride; ++i) {
            int32_t const row = i * kStride + static_cast<int32_t>(threadIdx.x) / kAcross;
            if (row < place.rows && column() < place.columns) visit(x[i], row);
        }
    }

    // Writes the values to `q [m, k]` and the scale to `s`. Once in a kernel.
    template <Format kFormat>
    __device__ __forceinline__ void quantize(BlockPlace const& place, int64_t k, int8_t* q, float* s) {
        __shared__ uint32_t partial[kWarpsMax];
        float amax = kLeastAmax;
        forEach(place, [&](Pack<T, kLanes>& v, int32_t) {
#pragma unroll
            for (int32_t i = 0; i < kLanes; ++i) amax = fmaxf(amax, fabsf(static_cast<float>(v.at[i])));
        });
        amax = blockMax(amax, partial);
#pragma unroll
        for (Pack<T, kLanes>& pack : x) keepPacked(pack);
        float const factor = __fdiv_rn(kTop<kFormat>, amax);
        int8_t* const to = q + place.row * k + place.column + column();
        forEach(place, [&](Pack<T, kLanes>& v, int32_t row) {
            float floats[kLanes];
            int8_t values[kLanes];
#pragma unroll
            for (int32_t i = 0; i < kLanes; ++i) floats[i] = static_cast<float>(v.at[i]);
            toBytes<kFormat>(values, floats, factor);
            store<wide>(to + row * k, values);
        });
        if (threadIdx.x == 0) *s = __fdiv_rn(amax, kTop<kFormat>);
    }
};

// CTAs for `[m, k]`.
inline int64_t blockCount(int64_t m, int64_t k) { return ceilDiv(m, kBlock) * ceilDiv(k, kBlock); }

inline Status checkBlocks(int64_t m, int64_t k) {
    if (blockCount(m, k) > INT32_MAX) return {"`x` must have fewer than 2^31 blocks of 128 x 128"};
    return {};
}

}  // namespace turbo
