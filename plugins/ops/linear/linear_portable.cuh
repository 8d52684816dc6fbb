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

using w8a8::portable::Accumulators, w8a8::portable::Loader, w8a8::portable::Tile, w8a8::portable::storeSums;
using w8a8::portable::kChunk, w8a8::portable::kMmaColumns, w8a8::portable::kMmaK, w8a8::portable::kMmaRows;
using w8a8::portable::kOperand, w8a8::portable::kPitch, w8a8::portable::kShared, w8a8::portable::kStage;
using w8a8::portable::kStages, w8a8::portable::kThreads, w8a8::portable::kTile, w8a8::portable::kWarpColumns;
using w8a8::portable::kWarpRows;

// acc += the products of one step, whose rows of the warp begin at `x` and `w` in shared memory.
template <class T>
__device__ __forceinline__ void multiply(Accumulators& acc, uint32_t x, uint32_t w) {
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
__global__ void __launch_bounds__(kThreads) kernel(Operands<T> operands) {
    extern __shared__ __align__(1024) uint8_t memory[];
    uint32_t const shared = sharedAddress(memory);
    Place const at = w8a8::place<kTile>(operands, static_cast<int32_t>(blockIdx.x));
    int32_t const bytes = operands.k * static_cast<int32_t>(sizeof(T));
    int32_t const steps = (bytes - 1) / kTile + 1;

    auto const rows = [&](T const* from, int32_t first) {
        return reinterpret_cast<int8_t const*>(from + static_cast<int64_t>(first) * operands.k);
    };
    Loader const loadX{rows(operands.x, at.row), at.rows - 1, bytes};
    Loader const loadW{rows(operands.w, at.column), at.columns - 1, bytes};
    auto const loadStep = [&](int32_t step, int32_t stage) {
        if (step < steps) {
            loadX.template load<kAsync>(shared + stage * kStage, step);
            loadW.template load<kAsync>(shared + stage * kStage + kOperand, step);
        }
        w8a8::commitCopies();
    };

    int32_t const warp = static_cast<int32_t>(threadIdx.x) / 32;
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
    int32_t const row = warp / (kTile / kWarpColumns) * kWarpRows;
    int32_t const column = warp % (kTile / kWarpColumns) * kWarpColumns;
    // Where a lane's loads begin: as in the W8A8 linear.
    uint32_t const x = shared + (row + lane % 16) * kTile + (lane / 16 ^ lane % 8) * kChunk;
    uint32_t const w = shared + kOperand + (column + lane % 8) * kTile + (lane / 8 ^ lane % 8) * kChunk;
    Accumulators acc = {};

#pragma unroll
    for (int32_t stage = 0; stage < kStages - 1; ++stage) loadStep(stage, stage);
    int32_t stage = 0;
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step) {
        w8a8::waitCopies<kStages - 2>();
        // Everyone's part of this step has come, and everyone is done with the step before, whose place is next.
        __syncthreads();
        loadStep(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
        multiply<T>(acc, x + stage * kStage, w + stage * kStage);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    w8a8::waitCopies<0>();
    __syncthreads();

    float* const y = reinterpret_cast<float*>(memory);
    storeSums(y, acc, row, column);
    __syncthreads();
    Tile tile{at, y, y + kTile * kPitch};
    tile.forEachRun<kRun>([&](int32_t row, int32_t column, int32_t valid, float (&sums)[kRun]) {
        float bias[kRun];
        loadBias<false>(bias, operands, column, valid);
        finish<false>(operands, sums, bias, row, column, valid);
    });
}

template <class T>
Status launch(Operands<T> const& operands, cudaStream_t stream) {
    bool const async = w8a8::aligned(operands.x, operands.k) && w8a8::aligned(operands.w, operands.k);
    auto* const run = async ? kernel<T, true> : kernel<T, false>;
    cudaError_t const error = cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) return {nullptr, error};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(((operands.m - 1) / kTile + 1) * ((operands.n - 1) / kTile + 1));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kShared;
    config.stream = stream;
    return launched(cudaLaunchKernelEx(&config, run, operands));
}

}  // namespace turbo::linear::portable
