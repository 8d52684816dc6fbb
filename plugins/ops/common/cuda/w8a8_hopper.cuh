// The W8A8 linear of sm_90a: wgmma and the copy engine; operands come as `steps_hopper.cuh` has it.
//
// A step is one block of K wide, and the 128 rows of a warpgroup are one block of the scales. Of these 64 rows at a
// time are multiplied, whose INT32 sums go into f32 while the other warpgroup's products keep the tensor cores busy.
// Left to themselves they would come to multiply together and convert together, so they take turns; the first one is
// a step ahead, and the turns that are left to one alone fall into the other's epilogue. E4M3 converts nothing, and its
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
// Steps that the first warpgroup is ahead of the second; it would wait for ever for a step more than there is room for.
constexpr int32_t kAhead = 1;
static_assert(kAhead < steps::kStages);
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

// acc[kFirst + i] += sums[i] * scale.
template <int32_t kFirst, class T, int32_t kSums>
__device__ __forceinline__ void addScaled(float (&acc)[64], T const (&sums)[kSums], float scale) {
#pragma unroll
    for (int32_t i = 0; i < kSums; ++i) acc[kFirst + i] = fmaf(static_cast<float>(sums[i]), scale, acc[kFirst + i]);
}

// A step as a warpgroup sees it.
struct Step {
    uint64_t x, w;    // descriptors of its rows of x and of those of w
    uint32_t full;    // the barrier for when they are there,
    uint32_t parity;  // the phase of it that this is,
    bool isThere;     // and whether it was seen to be over
    uint32_t empty;   // the barrier for when they are read
    bool inTurn;      // the other warpgroup takes turns with this one
    float s, ws;      // scales
};

// The products of a step, while the other warpgroup's hide the conversion of this one's sums. What is to be known of the
// next step, `lookAhead` finds out while products are under way: what an instruction takes between a turn's end and the
// next one's first product, the tensor cores may idle.
template <Format kFormat, class LookAhead>
__device__ __forceinline__ void multiplyBeside(Accumulators& acc, Step const& step, int32_t warpgroup,
                                               LookAhead lookAhead) {
    Sums<kFormat> sums;
#pragma unroll
    for (int32_t half = 0; half < kHalves; ++half) {
        uint64_t const x = step.x + half * (kProductRows * hopper::kRow / 16);
        hopper::settle(sums);
        if (step.inTurn) hopper::awaitTurn(warpgroup);
        hopper::beginProducts();
#pragma unroll
        for (int32_t k = 0; k < kProducts; ++k) {
            if (k == kProducts - 1) hopper::commitProducts();
            hopper::multiply(sums, x + k * hopper::kNextK, step.w + k * hopper::kNextK, k > 0);
        }
        hopper::commitProducts();
        if (half == kHalves - 1) lookAhead();
        if (step.inTurn) {
            // The other one's products begin while the last of these are under way.
            hopper::waitProducts<1>();
            hopper::endTurn(warpgroup);
        }
        hopper::waitProducts<0>();
        hopper::settle(sums);
        if (half == kHalves - 1 && threadIdx.x % 32 == 0) hopper::arrive(step.empty);
        addScaled<0>(acc[half], sums, step.s * step.ws);
    }
}

// The same of INT8 while the other one is at its epilogue: products of 64 columns, of which one is under way while the sums
// of the one before are converted. They read the rows of x twice, for which shared memory has time here alone.
template <class LookAhead>
__device__ __forceinline__ void multiplyAlone(Accumulators& acc, Step const& step, LookAhead lookAhead) {
    constexpr int32_t kColumns = 64;
    int32_t sums[2][32];
    float const scale = step.s * step.ws;
    auto const begin = [&](int32_t product) {
        uint64_t const x = step.x + product / 2 * (kProductRows * hopper::kRow / 16);
        uint64_t const w = step.w + product % 2 * (kColumns * hopper::kRow / 16);
        hopper::settle(sums[product % 2]);
        hopper::beginProducts();
#pragma unroll
        for (int32_t k = 0; k < kProducts; ++k) {
            hopper::multiply(sums[product % 2], x + k * hopper::kNextK, w + k * hopper::kNextK, k > 0);
        }
        hopper::commitProducts();
    };
    begin(0);
    begin(1);
    hopper::waitProducts<1>();
    hopper::settle(sums[0]);
    addScaled<0>(acc[0], sums[0], scale);
    begin(2);
    hopper::waitProducts<1>();
    hopper::settle(sums[1]);
    addScaled<32>(acc[0], sums[1], scale);
    begin(3);
    lookAhead();
    hopper::waitProducts<1>();
    hopper::settle(sums[0]);
    addScaled<0>(acc[1], sums[0], scale);
    hopper::waitProducts<0>();
    hopper::settle(sums[1]);
    if (threadIdx.x % 32 == 0) hopper::arrive(step.empty);
    addScaled<32>(acc[1], sums[1], scale);
}

// A warpgroup's part of a tile.
struct Part {
    Place at;               // of its outputs; `rows` may be negative
    float const *s, *ws;    // scales of its rows and columns
    float firstS, firstWs;  // those of the first step

    template <class Epilogue>
    __device__ __forceinline__ Part(
        Operands const& x, Epilogue const& epilogue, int32_t tile, int32_t steps, int32_t warpgroup)
        : at(place<kRows, Epilogue::kLinears>(x, tile)) {
        at.row += warpgroup * kBlock;
        at.rows = min(kBlock, at.rows - warpgroup * kBlock);
        // Rows past the end have no scales of their own, and no use for them.
        s = x.s + static_cast<int64_t>(min(at.row, x.m - 1) / kBlock) * steps;
        ws = epilogue.operands(x, at.linear).weights.ws + static_cast<int64_t>(at.column / kBlock) * steps;
        firstS = s[0];
        firstWs = ws[0];
    }
};

// The products and the epilogues of all tiles of this CTA, by one warpgroup of kMultipliers.
template <Format kFormat, class Epilogue>
__device__ __forceinline__ void multiply(
    Operands const& x, Epilogue const& epilogue, int32_t tiles, int32_t steps, Shared& shared, int32_t warpgroup) {
    constexpr bool kTurns = kFormat == Format::kInt8, kAlone = kTurns && Epilogue::kReadsMore;
    int32_t const firstTurn = warpgroup == 0 ? kAhead : 0, endOfTurns = warpgroup == 0 ? steps : steps - kAhead;
    if (kTurns && warpgroup == 1) hopper::endTurn(warpgroup);
    hopper::Ring<steps::kStages> ring;
    auto const look = [&](Step& step, int32_t number) {
        uint32_t const from = sharedAddress(shared.steps.data[ring.stage]);
        step.x = hopper::describe(from + warpgroup * kBlock * hopper::kRow);
        step.w = hopper::describe(from + steps::kBytesX);
        step.full = sharedAddress(&shared.steps.full[ring.stage]);
        step.parity = ring.parity;
        step.isThere = hopper::isOver(step.full, step.parity);
        step.empty = sharedAddress(&shared.steps.empty[ring.stage]);
        step.inTurn = kTurns && number >= firstTurn && number < endOfTurns;
        ring.advance();
    };
    int32_t tile = static_cast<int32_t>(blockIdx.x);
    Part part(x, epilogue, tile, steps, warpgroup);
    Step step;
    look(step, 0);
    while (true) {
        epilogue.prefetch(part.at, x.n, static_cast<int32_t>(threadIdx.x) % hopper::kWarpgroup);
        Accumulators acc = {};
        step.s = part.firstS;
        step.ws = part.firstWs;
#pragma unroll 1
        for (int32_t number = 0; number < steps; ++number) {
            Step next;
            auto const lookAhead = [&] {
                // Behind the last one comes the first of the next tile.
                int32_t const following = number + 1 < steps ? number + 1 : 0;
                look(next, following);
                next.s = part.s[following];
                next.ws = part.ws[following];
            };
            if (!step.isThere) hopper::wait(step.full, step.parity);
            if constexpr (kAlone) {
                if (step.inTurn) {
                    multiplyBeside<kFormat>(acc, step, warpgroup, lookAhead);
                } else {
                    multiplyAlone(acc, step, lookAhead);
                }
            } else {
                multiplyBeside<kFormat>(acc, step, warpgroup, lookAhead);
            }
            step = next;
        }
        Place const at = part.at;
        tile += static_cast<int32_t>(gridDim.x);
        bool const isLast = tile >= tiles;
        // Its scales are on their way during the epilogue.
        if (!isLast) part = Part(x, epilogue, tile, steps, warpgroup);
        Tile outputs{acc, at, shared.greatest[warpgroup], warpgroup};
        if (at.rows > 0) epilogue(outputs, epilogue.operands(x, at.linear));
        if (isLast) break;
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
