// The linear of sm_90a: wgmma and the copy engine, built as the W8A8 linear is (`w8a8_hopper.cuh`).
//
// A CTA stays and takes tile after tile of 256 x 128 outputs. Its third warpgroup fetches: a step is 128 bytes of K of
// 256 rows of x and of 128 of w. The other two multiply, 128 rows each, and keep their sums over all of K in registers:
// while a step is multiplied the one before is given back. They share the steps and nothing else, so that one is at its
// epilogue while the other multiplies.
//
// Sums of a product lie two columns to a thread. Rows of w are fetched in the order that gives a thread runs of eight
// neighbours, row p of a step being
//   p = 32 g + 8 j + 2 t + c  of the tile's  n = 32 g + 8 t + 2 j + c,
// with t the thread of a quad and c one of its two columns.
#pragma once

#include "../common/cuda/hopper.cuh"
#include "../common/cuda/shared.cuh"
#include "operands.cuh"

namespace turbo::linear::wgmma {

constexpr int32_t kMultipliers = 2;                        // warpgroups that multiply
constexpr int32_t kProductRows = 64;
constexpr int32_t kHalves = 2;                             // products that cover a warpgroup's rows
constexpr int32_t kWarpgroupRows = kHalves * kProductRows;
constexpr int32_t kRows = kMultipliers * kWarpgroupRows;   // of a tile of outputs
constexpr int32_t kColumns = w8a8::kBlock;
constexpr int32_t kGroups = kColumns / 32;                 // runs that a thread has of a row
constexpr int32_t kStages = 4;                             // steps in shared memory
constexpr int32_t kStepBytes = hopper::kRow;               // of each row
static_assert(kStepBytes == w8a8::kBlock);
constexpr int32_t kProductBytes = 32;                      // of each row in one product
constexpr int32_t kBytesX = kRows * kStepBytes;
constexpr int32_t kBytesW = kColumns * kStepBytes;
constexpr int32_t kStage = kBytesX + kBytesW;
constexpr int32_t kThreads = (kMultipliers + 1) * hopper::kWarpgroup;

// What shared memory holds, from a multiple of hopper::kAlignment on.
struct Shared {
    uint8_t steps[kStages][kStage];
    alignas(8) uint64_t full[kStages];
    uint64_t empty[kStages];
};
constexpr int32_t kShared = sizeof(Shared) + hopper::kAlignment;
static_assert(kShared <= 227 * 1024);

#if TURBO_HOPPER

using Accumulators = float[kHalves][64];

// The steps of all tiles of this CTA, by one thread.
template <class T>
__device__ __forceinline__ void fetch(
    CUtensorMap const& x, CUtensorMap const& w, Operands<T> const& operands, int32_t tiles, int32_t steps,
    Shared& shared) {
    hopper::prefetchMap(x);
    hopper::prefetchMap(w);
    hopper::Ring<kStages> ring;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place const at = w8a8::place<kRows>(operands, tile);
        for (int32_t step = 0; step < steps; ++step) {
            hopper::wait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
            uint32_t const full = sharedAddress(&shared.full[ring.stage]);
            uint32_t const to = sharedAddress(shared.steps[ring.stage]);
            hopper::expectBytes(full, kStage);
            hopper::copyBox(to, x, full, step * kStepBytes, at.row);
            hopper::copyBox(to + kBytesX, w, full, step * kStepBytes, 0, 0, 0, at.column / 32);
            ring.advance();
        }
    }
}

// Finishes and stores a warpgroup's outputs; `at.rows` may be negative.
template <class T>
__device__ __forceinline__ void storeTile(Operands<T> const& operands, Accumulators const& acc, Place const& at) {
    int32_t const thread = static_cast<int32_t>(threadIdx.x) % hopper::kWarpgroup;
    int32_t const first = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int32_t g = 0; g < kGroups; ++g) {
        int32_t const column = at.column + 32 * g + thread % 4 * kRun;
        float bias[kRun];
        loadBias<true>(bias, operands, column, kRun);
#pragma unroll
        for (int32_t half = 0; half < kHalves; ++half) {
#pragma unroll
            for (int32_t lower = 0; lower < 2; ++lower) {
                int32_t const row = first + half * kProductRows + lower * 8;
                if (row >= at.rows) continue;
                float sums[kRun];
#pragma unroll
                for (int32_t i = 0; i < kRun; ++i) sums[i] = acc[half][16 * g + i / 2 * 4 + 2 * lower + i % 2];
                finish<true>(operands, sums, bias, at.row + row, column, kRun);
            }
        }
    }
}

// The products and outputs of all tiles of this CTA, by one warpgroup of kMultipliers.
template <class T>
__device__ __forceinline__ void multiply(
    Operands<T> const& operands, int32_t tiles, int32_t steps, Shared& shared, int32_t warpgroup) {
    auto const release = [&](int32_t stage) {
        if (threadIdx.x % 32 == 0) hopper::arrive(sharedAddress(&shared.empty[stage]));
    };
    hopper::Ring<kStages> ring;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place at = w8a8::place<kRows>(operands, tile);
        at.row += warpgroup * kWarpgroupRows;
        at.rows -= warpgroup * kWarpgroupRows;
        Accumulators acc = {};
#pragma unroll
        for (auto& sums : acc) hopper::settle(sums);
        int32_t before = 0;
#pragma unroll 1
        for (int32_t step = 0; step < steps; ++step) {
            uint32_t const from = sharedAddress(shared.steps[ring.stage]);
            uint64_t const x = hopper::describe(from + warpgroup * kWarpgroupRows * kStepBytes);
            uint64_t const w = hopper::describe(from + kBytesX);
            constexpr uint64_t kNextHalf = kProductRows * kStepBytes / 16;
            hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);
            hopper::beginProducts();
#pragma unroll
            for (int32_t k = 0; k < kStepBytes / kProductBytes; ++k) {
#pragma unroll
                for (int32_t half = 0; half < kHalves; ++half) {
                    hopper::multiplyAdd(
                        T{}, acc[half], x + half * kNextHalf + k * hopper::kNextK, w + k * hopper::kNextK);
                }
            }
            hopper::commitProducts();
            hopper::waitProducts<1>();
            if (step > 0) release(before);
            before = ring.stage;
            ring.advance();
        }
        hopper::waitProducts<0>();
#pragma unroll
        for (auto& sums : acc) hopper::settle(sums);
        release(before);
        storeTile(operands, acc, at);
    }
}

#endif  // TURBO_HOPPER

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(__grid_constant__ CUtensorMap const x, __grid_constant__ CUtensorMap const w, Operands<T> operands) {
#if TURBO_HOPPER
    constexpr int32_t kFetching = 40, kMultiplying = 232;  // registers of a thread
    static_assert((kFetching + kMultipliers * kMultiplying) * hopper::kWarpgroup <= 65536);
    extern __shared__ uint8_t memory[];
    uint32_t const skip = -sharedAddress(memory) % hopper::kAlignment;
    Shared& shared = *reinterpret_cast<Shared*>(memory + skip);
    if (threadIdx.x == 0) {
        constexpr int32_t kReaders = kMultipliers * hopper::kWarpgroup / 32;
        for (int32_t stage = 0; stage < kStages; ++stage) {
            hopper::initBarrier(sharedAddress(&shared.full[stage]), 1);
            hopper::initBarrier(sharedAddress(&shared.empty[stage]), kReaders);
        }
        hopper::publishBarriers();
    }
    __syncthreads();

    int32_t const tiles = ((operands.m - 1) / kRows + 1) * (operands.n / kColumns);
    int32_t const steps = (operands.k * static_cast<int32_t>(sizeof(T)) - 1) / kStepBytes + 1;
    // The same in all lanes, which the compiler cannot know.
    int32_t const warpgroup = __shfl_sync(0xffffffff, static_cast<int32_t>(threadIdx.x) / hopper::kWarpgroup, 0);
    if (warpgroup == kMultipliers) {
        hopper::shrinkRegisters<kFetching>();
        if (threadIdx.x == kMultipliers * hopper::kWarpgroup) fetch(x, w, operands, tiles, steps, shared);
    } else {
        hopper::growRegisters<kMultiplying>();
        multiply(operands, tiles, steps, shared, warpgroup);
    }
#endif
}

// Whether the kernel takes these operands: whole tiles in width, and rows that the copy engine can read.
template <class T>
bool takes(Operands<T> const& x) {
    return x.m >= kWarpgroupRows && x.n % kColumns == 0 && x.wide && w8a8::aligned(x.x, x.k) &&
           w8a8::aligned(x.w, x.k);
}

template <class T>
Status launch(Operands<T> const& operands, int32_t multiprocessors, cudaStream_t stream) {
    auto const m = static_cast<uint64_t>(operands.m), n = static_cast<uint64_t>(operands.n);
    uint64_t const row = sizeof(T) * static_cast<uint64_t>(operands.k);
    CUtensorMap x, w;
    cudaError_t error = hopper::makeMap<2>(x, operands.x, {row, m}, {row}, {kStepBytes, kRows});
    // Axes of w: K, then c, t, j and g of the order above.
    if (error == cudaSuccess) {
        error = hopper::makeMap<5>(w, operands.w, {row, 2, 4, 4, n / 32}, {row, 8 * row, 2 * row, 32 * row},
                                   {kStepBytes, 2, 4, 4, kGroups});
    }
    auto* const run = kernel<T>;
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    }
    if (error != cudaSuccess) return {nullptr, error};
    int32_t const tiles = ((operands.m - 1) / kRows + 1) * (operands.n / kColumns);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(tiles < multiprocessors ? tiles : multiprocessors);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kShared;
    config.stream = stream;
    return launched(cudaLaunchKernelEx(&config, run, x, w, operands));
}

}  // namespace turbo::linear::wgmma
