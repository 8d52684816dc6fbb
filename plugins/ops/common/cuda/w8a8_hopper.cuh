// The W8A8 linear of sm_90a: wgmma and the copy engine; operands come as `steps_hopper.cuh` has it.
//
// A step is one block of K wide, and the 128 rows of a warpgroup are one block of the scales. Of these 64 rows at a
// time are multiplied, whose INT32 sums go into f32 while the other warpgroup's products keep the tensor cores busy.
// Left to themselves they would come to multiply together and convert together, so they take turns; the first one is
// a few turns ahead, and those that are left to one alone fall into the other's epilogue. E4M3 converts nothing, and its
// warpgroups go each at its own pace.
#pragma once

#include "steps_hopper.cuh"
#include "w8a8_tile.cuh"

namespace turbo::w8a8::wgmma {

using steps::kGroups, steps::kHalves, steps::kMultipliers, steps::kProductRows, steps::kProducts, steps::kRows;
static_assert(steps::kStepBytes == kBlock && steps::kWarpgroupRows == kBlock);

// What shared memory holds, from a multiple of hopper::kAlignment on.
struct Shared {
    steps::Steps steps;
    float greatest[kMultipliers][hopper::kWarpgroup / 32];
};
constexpr int32_t kShared = sizeof(Shared) + hopper::kAlignment;
constexpr int32_t kFewSteps = 16;
// Steps that the first warpgroup is ahead of the second; it would wait for ever for a step more than there is room for.
constexpr int32_t kAhead = 1, kMostAhead = 2;
static_assert(kMostAhead < steps::kStages);
static_assert(kShared <= 227 * 1024);

#if TURBO_HOPPER

using steps::Accumulators;

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
                    for (int32_t i = 0; i < kWidth; ++i) values[i] = acc[half][steps::sumOf(g, lower, i)];
                    visit(at.row + min(row, at.rows - 1), column, valid, values);
#pragma unroll
                    for (int32_t i = 0; i < kWidth; ++i) acc[half][steps::sumOf(g, lower, i)] = values[i];
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
};

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
    bool const leads = threadIdx.x % 32 == 0;
    // What one has done and the other has not takes room from what is fetched ahead, and epilogues cost less where a tile
    // has many steps.
    int32_t const ahead = kHalves * (steps <= kFewSteps ? kMostAhead : kAhead);
    if (kTurns && warpgroup == 1) hopper::endTurn(warpgroup);
    hopper::Ring<steps::kStages> ring;
    Sums<kFormat> sums;
    for (int32_t tile = static_cast<int32_t>(blockIdx.x); tile < tiles; tile += static_cast<int32_t>(gridDim.x)) {
        Place at = place<kRows, Epilogue::kLinears>(x, tile);
        auto const& own = epilogue.operands(x, at.linear);
        at.row += warpgroup * kBlock;
        at.rows = min(kBlock, at.rows - warpgroup * kBlock);
        // Rows past the end have no scales of their own, and no use for them.
        float const* const s = x.s + static_cast<int64_t>(min(at.row, x.m - 1) / kBlock) * steps;
        float const* const ws = own.weights.ws + static_cast<int64_t>(at.column / kBlock) * steps;
        epilogue.prefetch(at, x.n, static_cast<int32_t>(threadIdx.x) % hopper::kWarpgroup);
        Accumulators acc = {};
        float scale = s[0] * ws[0];
#pragma unroll 1
        for (int32_t step = 0; step < steps; ++step) {
            int32_t const next = min(step + 1, steps - 1);
            float const nextScale = s[next] * ws[next];
            uint32_t const from = sharedAddress(shared.steps.data[ring.stage]);
            uint64_t const w = hopper::describe(from + steps::kBytesX);
            hopper::wait(sharedAddress(&shared.steps.full[ring.stage]), ring.parity);
#pragma unroll
            for (int32_t half = 0; half < kHalves; ++half) {
                uint64_t const q = hopper::describe(from + (warpgroup * kBlock + half * kProductRows) * hopper::kRow);
                hopper::settle(sums);
                int32_t const turn = kHalves * step + half;
                bool const inTurn = kTurns && (warpgroup == 0 ? turn >= ahead : turn < kHalves * steps - ahead);
                if (inTurn) hopper::awaitTurn(warpgroup);
                hopper::beginProducts();
#pragma unroll
                for (int32_t k = 0; k < kProducts; ++k) {
                    if (k == kProducts - 1) hopper::commitProducts();
                    hopper::multiply(sums, q + k * hopper::kNextK, w + k * hopper::kNextK, k > 0);
                }
                hopper::commitProducts();
                if (inTurn) {
                    // The other one's products begin while the last of these are under way.
                    hopper::waitProducts<1>();
                    hopper::endTurn(warpgroup);
                }
                hopper::waitProducts<0>();
                hopper::settle(sums);
                if (half == kHalves - 1 && leads) hopper::arrive(sharedAddress(&shared.steps.empty[ring.stage]));
                addScaled(acc[half], sums, scale);
            }
            scale = nextScale;
            ring.advance();
        }
        Tile outputs{acc, at, shared.greatest[warpgroup], warpgroup};
        if (at.rows > 0) epilogue(outputs, own);
    }
    // The other one's last turn ended, too.
    if (kTurns && warpgroup == 0) hopper::awaitTurn(warpgroup);
}

#endif  // TURBO_HOPPER

template <Format kFormat, class Epilogue>
__global__ void __launch_bounds__(steps::kThreads, 1) kernel(
    __grid_constant__ CUtensorMap const q, __grid_constant__ steps::WeightMaps<Epilogue::kLinears> const w, Operands x,
    Epilogue epilogue) {
#if TURBO_HOPPER
    extern __shared__ uint8_t memory[];
    uint32_t const skip = -sharedAddress(memory) % hopper::kAlignment;
    Shared& shared = *reinterpret_cast<Shared*>(memory + skip);
    int32_t const blocks = (x.k - 1) / kBlock + 1;
    steps::run(q, w, x, blocks, shared.steps, [&](int32_t tiles, int32_t warpgroup) {
        multiply<kFormat>(x, epilogue, tiles, blocks, shared, warpgroup);
    });
#endif
}

// Enqueues the kernel for what `w8a8_choice.h` leaves to it.
template <Format kFormat, class Epilogue>
Status launch(Operands const& x, Epilogue const& epilogue, int32_t multiprocessors, cudaStream_t stream) {
    void const* w[Epilogue::kLinears] = {x.weights.w};
    if constexpr (Epilogue::kLinears > 1) {
        for (int32_t i = 0; i < Epilogue::kLinears; ++i) w[i] = epilogue.weights[i].w;
    }
    return steps::launch(kernel<kFormat, Epilogue>, x.q, w, x, static_cast<uint64_t>(x.k), kShared, multiprocessors,
                         stream, x, epilogue);
}

}  // namespace turbo::w8a8::wgmma
