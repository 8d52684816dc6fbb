// What the linears of sm_90a share: how operands come to the warpgroups that multiply them.
//
// A CTA stays and takes tile after tile of 256 x 128 outputs. Its third warpgroup fetches: a step is 128 bytes of K of
// 256 rows of x and of 128 of w. The other two multiply, 128 rows each, and share the steps and nothing else.
//
// Sums of a product lie two columns to a thread. Rows of w are therefore fetched in another order: row p of a step is
//   p = 32 g + 8 j + 2 t + c  of the tile's  n = 32 g + 8 t + 2 j + c,
// with t the thread of a quad and c one of its two columns: the sums 16 g to 16 g + 15 of a thread are then eight
// neighbouring outputs of two rows, and a quad has 32 neighbours. A tensor map of five axes does it at no cost.
#pragma once

#include "hopper.cuh"
#include "op.h"
#include "shared.cuh"
#include "tile.cuh"

namespace turbo::steps {

constexpr int32_t kMultipliers = 2;                       // warpgroups that multiply
constexpr int32_t kProductRows = 64;
constexpr int32_t kHalves = 2;                            // products that cover a warpgroup's rows
constexpr int32_t kWarpgroupRows = kHalves * kProductRows;
constexpr int32_t kRows = kMultipliers * kWarpgroupRows;  // of a tile of outputs
constexpr int32_t kColumns = tile::kBlock;
constexpr int32_t kGroups = kColumns / 32;                // runs of eight columns that a thread has of a row
constexpr int32_t kStages = 4;                            // steps in shared memory
constexpr int32_t kStepBytes = hopper::kRow;              // of each row
constexpr int32_t kProductBytes = 32;                     // of each row in one product
constexpr int32_t kProducts = kStepBytes / kProductBytes;
constexpr int32_t kBytesX = kRows * kStepBytes;
constexpr int32_t kBytesW = kColumns * kStepBytes;
constexpr int32_t kStage = kBytesX + kBytesW;
constexpr int32_t kThreads = (kMultipliers + 1) * hopper::kWarpgroup;

// In shared memory, from a multiple of hopper::kAlignment on.
struct Steps {
    uint8_t data[kStages][kStage];
    alignas(8) uint64_t full[kStages];
    uint64_t empty[kStages];
};

// How the copy engine reads the rows of w of each linear of a launch.
template <int32_t kLinears>
struct WeightMaps {
    CUtensorMap map[kLinears];
};

#if TURBO_HOPPER

using Accumulators = float[kHalves][64];

// Where the sum of column i of run g lies, in the upper row or the one eight further down.
constexpr __device__ int32_t sumOf(int32_t g, int32_t lower, int32_t i) {
    return 16 * g + i / 2 * 4 + 2 * lower + i % 2;
}

// The steps of all tiles of this CTA, by one thread.
template <int32_t kLinears, class Sizes>
__device__ __forceinline__ void fetch(CUtensorMap const& x, WeightMaps<kLinears> const& w, Sizes const& sizes,
                                      int32_t tiles, int32_t steps, Steps& shared) {
    hopper::prefetchMap(x);
    for (CUtensorMap const& map : w.map) hopper::prefetchMap(map);
    hopper::Ring<kStages> ring;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        tile::Place const at = tile::place<kRows, kLinears>(sizes, tile);
        for (int32_t step = 0; step < steps; ++step) {
            hopper::wait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
            uint32_t const full = sharedAddress(&shared.full[ring.stage]);
            uint32_t const to = sharedAddress(shared.data[ring.stage]);
            hopper::expectBytes(full, kStage);
            hopper::copyBox(to, x, full, step * kStepBytes, at.row);
            hopper::copyBox(to + kBytesX, w.map[at.linear], full, step * kStepBytes, 0, 0, 0, at.column / 32);
            ring.advance();
        }
    }
}

// What a CTA does: one thread fetches, and two warpgroups call `multiply(tiles, warpgroup)`. Each of their warps
// arrives at `empty` when it is done with a step.
template <int32_t kLinears, class Sizes, class Multiply>
__device__ __forceinline__ void run(CUtensorMap const& x, WeightMaps<kLinears> const& w, Sizes const& sizes,
                                    int32_t steps, Steps& shared, Multiply multiply) {
    constexpr int32_t kFetching = 40, kMultiplying = 232;  // registers of a thread
    static_assert(hopper::hasRegisters<kThreads>((kFetching + kMultipliers * kMultiplying) * hopper::kWarpgroup));
    if (threadIdx.x == 0) {
        for (int32_t stage = 0; stage < kStages; ++stage) {
            hopper::initBarrier(sharedAddress(&shared.full[stage]), 1);
            hopper::initBarrier(sharedAddress(&shared.empty[stage]), kMultipliers * hopper::kWarpgroup / 32);
        }
        hopper::publishBarriers();
    }
    __syncthreads();
    followKernelAhead();

    int32_t const tiles = tile::count<kRows, kLinears>(sizes);
    // The same in all lanes, which the compiler cannot know.
    int32_t const warpgroup = __shfl_sync(0xffffffff, static_cast<int32_t>(threadIdx.x) / hopper::kWarpgroup, 0);
    if (warpgroup == kMultipliers) {
        hopper::shrinkRegisters<kFetching>();
        if (threadIdx.x == kMultipliers * hopper::kWarpgroup) fetch(x, w, sizes, tiles, steps, shared);
    } else {
        hopper::growRegisters<kMultiplying>();
        multiply(tiles, warpgroup);
    }
}

#endif  // TURBO_HOPPER

// Enqueues a kernel for rows of x `[m]` and of each w `[n]` of `bytes` each, with `shared` bytes that begin anywhere; it
// gets the tensor maps, then `arguments`.
template <int32_t kLinears, class Sizes, class... P, class... A>
Status launch(void (*kernel)(CUtensorMap, WeightMaps<kLinears>, P...), void const* x,
              void const* const (&w)[kLinears], Sizes const& sizes, uint64_t bytes, int32_t shared,
              int32_t multiprocessors, cudaStream_t stream, A const&... arguments) {
    auto const m = static_cast<uint64_t>(sizes.m), n = static_cast<uint64_t>(sizes.n);
    CUtensorMap mapX;
    WeightMaps<kLinears> mapsW;
    cudaError_t error = hopper::makeMap<2>(mapX, x, {bytes, m}, {bytes}, {kStepBytes, kRows});
    // Axes of w: K, then c, t, j and g of the order above.
    for (int32_t i = 0; i < kLinears && error == cudaSuccess; ++i) {
        error = hopper::makeMap<5>(mapsW.map[i], w[i], {bytes, 2, 4, 4, n / 32},
                                   {bytes, 8 * bytes, 2 * bytes, 32 * bytes}, {kStepBytes, 2, 4, 4, kGroups});
    }
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    }
    if (error != cudaSuccess) return {nullptr, error};
    int32_t const tiles = tile::count<kRows, kLinears>(sizes);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(tiles < multiprocessors ? tiles : multiprocessors);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    cudaLaunchAttribute early = beginEarly();
    config.attrs = &early;
    config.numAttrs = 1;
    return launched(cudaLaunchKernelEx(&config, kernel, mapX, mapsW, P(arguments)...));
}

}  // namespace turbo::steps
