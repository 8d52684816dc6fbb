// The linear of sm_90a: wgmma and the copy engine; operands come as `steps_hopper.cuh` has it.
//
// Sums over all of K stay in registers: while a step is multiplied the one before is given back. The warpgroups go each
// at its own pace, so that one is at its epilogue while the other multiplies.
#pragma once

#include "../common/cuda/steps_hopper.cuh"
#include "operands.cuh"

namespace turbo::linear::wgmma {

using steps::kGroups, steps::kHalves, steps::kProductRows, steps::kRows, steps::kStepBytes, steps::kWarpgroupRows;
using steps::Steps;

constexpr int32_t kShared = sizeof(Steps) + hopper::kAlignment;
static_assert(kShared <= 227 * 1024);

#if TURBO_HOPPER

using steps::Accumulators;

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
                for (int32_t i = 0; i < kRun; ++i) sums[i] = acc[half][steps::sumOf(g, lower, i)];
                finish<true>(operands, sums, bias, at.row + row, column, kRun);
            }
        }
    }
}

// The products and outputs of all tiles of this CTA, by one warpgroup of kMultipliers.
template <class T>
__device__ __forceinline__ void multiply(
    Operands<T> const& operands, int32_t tiles, int32_t blocks, Steps& shared, int32_t warpgroup) {
    auto const release = [&](int32_t stage) {
        if (threadIdx.x % 32 == 0) hopper::arrive(sharedAddress(&shared.empty[stage]));
    };
    hopper::Ring<steps::kStages> ring;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place at = tile::place<kRows>(operands, tile);
        at.row += warpgroup * kWarpgroupRows;
        at.rows -= warpgroup * kWarpgroupRows;
        Accumulators acc = {};
#pragma unroll
        for (auto& sums : acc) hopper::settle(sums);
        int32_t before = 0;
#pragma unroll 1
        for (int32_t step = 0; step < blocks; ++step) {
            uint32_t const from = sharedAddress(shared.data[ring.stage]);
            uint64_t const x = hopper::describe(from + warpgroup * kWarpgroupRows * kStepBytes);
            uint64_t const w = hopper::describe(from + steps::kBytesX);
            constexpr uint64_t kNextHalf = kProductRows * kStepBytes / 16;
            hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);
            hopper::beginProducts();
#pragma unroll
            for (int32_t k = 0; k < steps::kProducts; ++k) {
#pragma unroll
                for (int32_t half = 0; half < kHalves; ++half) {
                    hopper::multiply(
                        T{}, acc[half], x + half * kNextHalf + k * hopper::kNextK, w + k * hopper::kNextK, true);
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
__global__ void __launch_bounds__(steps::kThreads, 1)
    kernel(__grid_constant__ CUtensorMap const x, __grid_constant__ steps::WeightMaps<1> const w, Operands<T> operands) {
#if TURBO_HOPPER
    extern __shared__ uint8_t memory[];
    uint32_t const skip = -sharedAddress(memory) % hopper::kAlignment;
    Steps& shared = *reinterpret_cast<Steps*>(memory + skip);
    int32_t const blocks = (operands.k * static_cast<int32_t>(sizeof(T)) - 1) / kStepBytes + 1;
    steps::run(x, w, operands, blocks, shared, [&](int32_t tiles, int32_t warpgroup) {
        multiply(operands, tiles, blocks, shared, warpgroup);
    });
#endif
}

// Whether the kernel takes these operands: whole tiles in width, and rows that the copy engine can read.
template <class T>
bool takes(Operands<T> const& x) {
    return x.m >= kWarpgroupRows && x.n % steps::kColumns == 0 && x.wide && tile::aligned(x.x, x.k) &&
           tile::aligned(x.w, x.k);
}

template <class T>
Status launch(Operands<T> const& operands, int32_t multiprocessors, cudaStream_t stream) {
    uint64_t const bytes = sizeof(T) * static_cast<uint64_t>(operands.k);
    void const* const w[] = {operands.w};
    return steps::launch(
        kernel<T>, operands.x, w, operands, bytes, kShared, multiprocessors, stream, operands);
}

}  // namespace turbo::linear::wgmma
