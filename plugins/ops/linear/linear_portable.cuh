// The linear of sm_80 and newer: mma.sync and cp.async.
//
// Tiles, steps and their way into shared memory are those of the W8A8 linear (`w8a8_portable.cuh`), which counts
// bytes: a step is 128 bytes of K of 128 rows of x and of w. What ldmatrix gives a lane of rows of bytes is also a
// fragment of 16-bit elements. Sums stay in the registers of the mma over all of K.
#pragma once

#include "../common/cuda/attn_mma.cuh"
#include "../common/cuda/w8a8_portable.cuh"
#include "operands.cuh"

namespace turbo::linear::portable {

using w8a8::portable::Accumulators, w8a8::portable::Tall;
using w8a8::portable::kMmaColumns, w8a8::portable::kMmaK, w8a8::portable::kMmaRows;
using w8a8::portable::kTile, w8a8::portable::kWarpColumns, w8a8::portable::kWarpRows;

// acc += the products of one step, whose rows of the warp begin at `x` and `w` in shared memory. There is no scale.
template <class T>
__device__ __forceinline__ void multiply(Accumulators& acc, uint32_t x, uint32_t w, float) {
    constexpr int32_t kColumnTiles = kWarpColumns / kMmaColumns;
#pragma unroll
    for (int32_t pair = 0; pair < kTile / kMmaK / 2; ++pair) {
        uint32_t b[kColumnTiles][4];
#pragma unroll
        for (int32_t j = 0; j < kColumnTiles; ++j) {
            w8a8::loadMatrices(b[j], (w ^ pair * 2 * kMmaK) + j * kMmaColumns * kTile);
        }
#pragma unroll
        for (int32_t half = 0; half < 2; ++half) {
#pragma unroll
            for (int32_t i = 0; i < kWarpRows / kMmaRows; ++i) {
                uint32_t a[4];
                w8a8::loadMatrices(a, (x ^ (pair * 2 + half) * kMmaK) + i * kMmaRows * kTile);
#pragma unroll
                for (int32_t j = 0; j < kColumnTiles; ++j) {
                    attn::mma<T>(acc[i][j], a, b[j][half * 2], b[j][half * 2 + 1]);
                }
            }
        }
    }
}

template <class T, bool kAsync>
__global__ void __launch_bounds__(Tall::kThreads) kernel(Operands<T> operands) {
    extern __shared__ __align__(1024) uint8_t memory[];
    Place const at = tile::place<Tall::kRows>(operands, static_cast<int32_t>(blockIdx.x));
    int32_t const bytes = operands.k * static_cast<int32_t>(sizeof(T));
    int32_t const steps = (bytes - 1) / kTile + 1;

    auto const rows = [&](T const* from, int32_t first) {
        return reinterpret_cast<int8_t const*>(from + static_cast<int64_t>(first) * operands.k);
    };
    w8a8::portable::LoaderX<Tall> const loadX{rows(operands.x, at.row), at.rows - 1, bytes};
    w8a8::portable::LoaderW<Tall> const loadW{rows(operands.w, at.column), at.columns - 1, bytes};
    auto tile = w8a8::portable::sumSteps<Tall, kAsync>(
        memory, at, loadX, loadW, steps, [](int32_t) { return 1.0f; }, multiply<T>);
    tile.forEachRun<kRun>([&](int32_t row, int32_t column, int32_t valid, float (&sums)[kRun]) {
        float bias[kRun];
        loadBias<false>(bias, operands, column, valid);
        finish<false>(operands, sums, bias, row, column, valid);
    });
}

template <class T>
Status launch(Operands<T> const& operands, cudaStream_t stream) {
    bool const async = tile::aligned(operands.x, operands.k) && tile::aligned(operands.w, operands.k);
    return w8a8::portable::start<Tall>(async ? kernel<T, true> : kernel<T, false>, operands, stream, operands);
}

}  // namespace turbo::linear::portable
