// The W8A8 linear of sm_90a: wgmma and the copy engine.
//
// A CTA stays and takes tile after tile of 256 x 128 outputs. Its third warpgroup fetches: a step is 256 rows of q and
// 128 of w, one block of K wide. The other two multiply, 128 rows each, which is one block of the scales: 64 rows at a
// time, whose INT32 sums go into f32 while the other warpgroup's products keep the tensor cores busy. Left to themselves
// they would come to multiply together and convert together, so they take turns. E4M3 converts nothing, and its
// warpgroups share the steps and nothing else: one is at its epilogue while the other multiplies.
//
// Sums of a product lie two columns to a thread. Rows of w are therefore fetched in another order: row p of a step is
//   p = 32 g + 8 j + 2 t + c  of the tile's  n = 32 g + 8 t + 2 j + c,
// with t the thread of a quad and c one of its two columns: the sums 16 g to 16 g + 15 of a thread are then eight
// neighbouring outputs of two rows, and a quad has 32 neighbours. A tensor map of five axes does it at no cost.
#pragma once

#include "hopper.cuh"
#include "mma_s8.cuh"
#include "op.h"
#include "w8a8_tile.cuh"

namespace turbo::w8a8::wgmma {

constexpr int32_t kMultipliers = 2;                 // warpgroups that multiply
constexpr int32_t kRows = kMultipliers * kBlock;    // of a tile of outputs; it has kBlock columns
constexpr int32_t kStages = 4;                      // steps in shared memory
constexpr int32_t kBytesQ = kRows * kBlock;
constexpr int32_t kBytesW = kBlock * kBlock;
constexpr int32_t kStage = kBytesQ + kBytesW;
constexpr int32_t kThreads = (kMultipliers + 1) * hopper::kWarpgroup;
constexpr int32_t kProductRows = 64;
constexpr int32_t kHalves = kBlock / kProductRows;  // products that cover a warpgroup's rows
constexpr int32_t kProductK = 32;
constexpr int32_t kGroups = 4;                      // runs of eight columns that a thread has of a row

// What shared memory holds, from a multiple of hopper::kAlignment on.
struct Shared {
    uint8_t steps[kStages][kStage];
    float greatest[kMultipliers][hopper::kWarpgroup / 32];
    alignas(8) uint64_t full[kStages];
    uint64_t empty[kStages];
};
constexpr int32_t kShared = sizeof(Shared) + hopper::kAlignment;
static_assert(kShared <= 227 * 1024);

#if TURBO_HOPPER

using Accumulators = float[kHalves][64];

// A warpgroup's 128 x 128 outputs, in registers.
struct Tile {
    Accumulators& acc;
    Place at;             // of the warpgroup's outputs; `rows` may be negative
    float* greatest;      // one for each warp
    int32_t warpgroup;

    static constexpr bool kWide = true;
    template <class T>
    static constexpr int32_t kRun = 8;

    template <int32_t kWidth, class Visit>
    __device__ __forceinline__ void change(Visit visit) {
        static_assert(kWidth == 8);
        int32_t const thread = static_cast<int32_t>(threadIdx.x) % hopper::kWarpgroup;
        int32_t const first = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g) {
            int32_t const column = at.column + 32 * g + thread % 4 * 8;
#pragma unroll
            for (int32_t half = 0; half < kHalves; ++half) {
#pragma unroll
                for (int32_t lower = 0; lower < 2; ++lower) {
                    int32_t const row = first + half * kProductRows + lower * 8;
                    // No branch: what `visit` reads for all runs can be on its way at once.
                    int32_t const valid = row < at.rows ? kWidth : 0;
                    float values[kWidth];
#pragma unroll
                    for (int32_t i = 0; i < kWidth; ++i) values[i] = acc[half][index(g, lower, i)];
                    visit(at.row + min(row, at.rows - 1), column, valid, values);
#pragma unroll
                    for (int32_t i = 0; i < kWidth; ++i) acc[half][index(g, lower, i)] = values[i];
                }
            }
        }
    }

    // What `visit` changes is of no use to anyone afterwards.
    template <int32_t kWidth, class Visit>
    __device__ __forceinline__ void forEachRun(Visit visit) {
        change<kWidth>(visit);
    }

    __device__ __forceinline__ float maximum(float value) {
#pragma unroll
        for (int32_t lanes = 16; lanes > 0; lanes /= 2) {
            value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lanes));
        }
        if (threadIdx.x % 32 == 0) greatest[threadIdx.x % hopper::kWarpgroup / 32] = value;
        hopper::syncWarpgroup(warpgroup);
#pragma unroll
        for (int32_t warp = 0; warp < hopper::kWarpgroup / 32; ++warp) value = fmaxf(value, greatest[warp]);
        // Nobody writes the next tile's before all have read these.
        hopper::syncWarpgroup(warpgroup);
        return value;
    }

    __device__ __forceinline__ bool isFirst() const { return threadIdx.x % hopper::kWarpgroup == 0; }

private:
    // Where the sum of column i of run g lies, in the upper row or the one eight further down.
    static constexpr __device__ int32_t index(int32_t g, int32_t lower, int32_t i) {
        return 16 * g + i / 2 * 4 + 2 * lower + i % 2;
    }
};

// The steps of all tiles of this CTA, by one thread.
__device__ __forceinline__ void fetch(
    CUtensorMap const& q, CUtensorMap const& w, Operands const& x, int32_t tiles, int32_t steps, Shared& shared) {
    hopper::prefetchMap(q);
    hopper::prefetchMap(w);
    hopper::Ring<kStages> ring;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place const at = place<kRows>(x, tile);
        for (int32_t step = 0; step < steps; ++step) {
            hopper::wait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
            uint32_t const full = sharedAddress(&shared.full[ring.stage]);
            uint32_t const to = sharedAddress(shared.steps[ring.stage]);
            hopper::expectBytes(full, kStage);
            hopper::copyBox(to, q, full, step * kBlock, at.row);
            hopper::copyBox(to + kBytesQ, w, full, step * kBlock, 0, 0, 0, at.column / 32);
            ring.advance();
        }
    }
}

// A product's sums: exact for INT8, and of few bits for E4M3, of which a block is not too much.
template <Format kFormat>
using Sums = std::conditional_t<kFormat == Format::kInt8, int32_t, float>[64];

// acc += sums * scale.
template <class T>
__device__ __forceinline__ void addScaled(float (&acc)[64], T const (&sums)[64], float scale) {
#pragma unroll
    for (int32_t i = 0; i < 64; ++i) acc[i] = fmaf(static_cast<float>(sums[i]), scale, acc[i]);
}

// The products and the epilogues of all tiles of this CTA, by one warpgroup of kMultipliers.
template <Format kFormat, class Epilogue>
__device__ __forceinline__ void multiply(
    Operands const& x, Epilogue const& epilogue, int32_t tiles, int32_t steps, Shared& shared, int32_t warpgroup) {
    constexpr bool kTurns = kFormat == Format::kInt8;
    constexpr int32_t kProducts = kBlock / kProductK;
    bool const leads = threadIdx.x % 32 == 0;
    if (kTurns && warpgroup == 1) hopper::endTurn(warpgroup);
    hopper::Ring<kStages> ring;
    Sums<kFormat> sums;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place at = place<kRows>(x, tile);
        at.row += warpgroup * kBlock;
        at.rows = min(kBlock, at.rows - warpgroup * kBlock);
        // Rows past the end have no scales of their own, and no use for them.
        float const* const s = x.s + static_cast<int64_t>(min(at.row, x.m - 1) / kBlock) * steps;
        float const* const ws = x.ws + static_cast<int64_t>(at.column / kBlock) * steps;
        epilogue.prefetch(at, x.n, static_cast<int32_t>(threadIdx.x) % hopper::kWarpgroup);
        Accumulators acc = {};
        float scale = s[0] * ws[0];
#pragma unroll 1
        for (int32_t step = 0; step < steps; ++step) {
            int32_t const next = min(step + 1, steps - 1);
            float const nextScale = s[next] * ws[next];
            uint32_t const from = sharedAddress(shared.steps[ring.stage]);
            uint64_t const w = hopper::describe(from + kBytesQ);
            hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);
#pragma unroll
            for (int32_t half = 0; half < kHalves; ++half) {
                uint64_t const q = hopper::describe(from + (warpgroup * kBlock + half * kProductRows) * hopper::kRow);
                hopper::settle(sums);
                if (kTurns) hopper::awaitTurn(warpgroup);
                hopper::beginProducts();
#pragma unroll
                for (int32_t k = 0; k < kProducts; ++k) {
                    if (k == kProducts - 1) hopper::commitProducts();
                    hopper::multiply(sums, q + k * hopper::kNextK, w + k * hopper::kNextK, k > 0);
                }
                hopper::commitProducts();
                if (kTurns) {
                    // The other one's products begin while the last of these are under way.
                    hopper::waitProducts<1>();
                    hopper::endTurn(warpgroup);
                }
                hopper::waitProducts<0>();
                hopper::settle(sums);
                if (half == kHalves - 1 && leads) hopper::arrive(sharedAddress(&shared.empty[ring.stage]));
                addScaled(acc[half], sums, scale);
            }
            scale = nextScale;
            ring.advance();
        }
        Tile outputs{acc, at, shared.greatest[warpgroup], warpgroup};
        if (at.rows > 0) epilogue(outputs, x);
    }
    // The other one's last turn ended, too.
    if (kTurns && warpgroup == 0) hopper::awaitTurn(warpgroup);
}

#endif  // TURBO_HOPPER

template <Format kFormat, class Epilogue>
__global__ void __launch_bounds__(kThreads, 1) kernel(
    __grid_constant__ CUtensorMap const q, __grid_constant__ CUtensorMap const w, Operands x, Epilogue epilogue) {
#if TURBO_HOPPER
    constexpr int32_t kFetching = 40, kMultiplying = 232;  // registers of a thread
    static_assert((kFetching + kMultipliers * kMultiplying) * hopper::kWarpgroup <= 65536);
    extern __shared__ uint8_t memory[];
    uint32_t const skip = -sharedAddress(memory) % hopper::kAlignment;
    Shared& shared = *reinterpret_cast<Shared*>(memory + skip);
    if (threadIdx.x == 0) {
        for (int32_t stage = 0; stage < kStages; ++stage) {
            hopper::initBarrier(sharedAddress(&shared.full[stage]), 1);
            hopper::initBarrier(sharedAddress(&shared.empty[stage]), kMultipliers * hopper::kWarpgroup / 32);
        }
        hopper::publishBarriers();
    }
    __syncthreads();

    int32_t const tiles = ((x.m - 1) / kRows + 1) * ((x.n - 1) / kBlock + 1);
    int32_t const steps = (x.k - 1) / kBlock + 1;
    // The same in all lanes, which the compiler cannot know.
    int32_t const warpgroup = __shfl_sync(0xffffffff, static_cast<int32_t>(threadIdx.x) / hopper::kWarpgroup, 0);
    if (warpgroup == kMultipliers) {
        hopper::shrinkRegisters<kFetching>();
        if (threadIdx.x == kMultipliers * hopper::kWarpgroup) fetch(q, w, x, tiles, steps, shared);
    } else {
        hopper::growRegisters<kMultiplying>();
        multiply<kFormat>(x, epilogue, tiles, steps, shared, warpgroup);
    }
#endif
}

// Whether the kernel takes these operands: whole blocks of outputs, and rows that the copy engine can read.
inline bool takes(Operands const& x) {
    auto const aligned = [](void const* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
    return x.m >= kBlock && x.n % kBlock == 0 && x.k % 16 == 0 && aligned(x.q) && aligned(x.w) && x.wideBias;
}

template <Format kFormat, class Epilogue>
Status launch(Operands const& x, Epilogue const& epilogue, int32_t multiprocessors, cudaStream_t stream) {
    auto const k = static_cast<uint64_t>(x.k), m = static_cast<uint64_t>(x.m), n = static_cast<uint64_t>(x.n);
    CUtensorMap q, w;
    cudaError_t error = hopper::makeMap<2>(q, x.q, {k, m}, {k}, {kBlock, kRows});
    // Axes of w: K, then c, t, j and g of the order above.
    if (error == cudaSuccess) {
        error = hopper::makeMap<5>(
            w, x.w, {k, 2, 4, 4, n / 32}, {k, 8 * k, 2 * k, 32 * k}, {kBlock, 2, 4, 4, kBlock / 32});
    }
    auto* const run = kernel<kFormat, Epilogue>;
    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    }
    if (error != cudaSuccess) return {nullptr, error};
    int32_t const tiles = ((x.m - 1) / kRows + 1) * (x.n / kBlock);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(tiles < multiprocessors ? tiles : multiprocessors);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kShared;
    config.stream = stream;
    return launched(cudaLaunchKernelEx(&config, run, q, w, x, epilogue));
}

}  // namespace turbo::w8a8::wgmma
