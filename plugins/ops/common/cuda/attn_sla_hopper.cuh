// SLA in the activation type on sm_90a: wgmma and tensor copies, for heads of kHeadDim channels.
//
// A thread block is one warpgroup and attends for 64 queries, which stay in registers. Keys and values come in tiles of
// 64, each as two boxes of 64 channels; what lies past a sequence's end comes as zeros. Several blocks on a
// multiprocessor keep its tensor cores busy while others are at their softmax.
#pragma once

#include "attn_linear_hopper.cuh"
#include "attn_rows_hopper.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

constexpr int kSlaKeys = 64;  // of a tile
constexpr int kSlaStages = 2;
constexpr int kSlaBoxBytes = kSlaKeys * hopper::kRow;

// Tiles in shared memory, from a multiple of hopper::kAlignment on: boxes of [key, channel].
struct SlaShared {
    struct {
        uint8_t keys[kBoxes][kSlaBoxBytes];
        uint8_t values[kBoxes][kSlaBoxBytes];
    } stages[kSlaStages];
    alignas(8) uint64_t full[kSlaStages];
    uint64_t state;  // that of the linear branch is there

    __device__ Ending& ending() { return reinterpret_cast<Ending&>(stages); }
};
static_assert(sizeof(SlaShared::stages) >= sizeof(Ending));

template <class T>
__global__ void __launch_bounds__(hopper::kWarpgroup, 3)
    attendSla(Shape shape, T const* q, __grid_constant__ CUtensorMap const k, __grid_constant__ CUtensorMap const v,
              T* o, Kept kept, int32_t blockQ, int32_t blockK, Linear<T> linear) {
#if TURBO_HOPPER
    extern __shared__ uint8_t memory[];
    auto& shared = *reinterpret_cast<SlaShared*>(memory + -sharedAddress(memory) % hopper::kAlignment);
    bool const leads = threadIdx.x == 0;
    if (leads) {
        for (uint64_t& barrier : shared.full) hopper::initBarrier(sharedAddress(&barrier), 1);
        hopper::initBarrier(sharedAddress(&shared.state), 1);
        hopper::publishBarriers();
    }
    __syncthreads();

    int32_t const batch = static_cast<int32_t>(blockIdx.z), column = static_cast<int32_t>(blockIdx.y) * 2 * kHeadDim;
    auto const fetch = [&](int32_t stage, int32_t tile) {
        if (!leads || tile < 0) return;
        uint32_t const full = sharedAddress(&shared.full[stage]);
        hopper::expectBytes(full, 2 * kBoxes * kSlaBoxBytes);
        for (int32_t box = 0; box < kBoxes; ++box) {
            int32_t const at = column + box * hopper::kRow;
            hopper::copyBox(sharedAddress(shared.stages[stage].keys[box]), k, full, at, tile * kSlaKeys, batch);
            hopper::copyBox(sharedAddress(shared.stages[stage].values[box]), v, full, at, tile * kSlaKeys, batch);
        }
    };
    KeyTiles<kSlaKeys> tiles(kept, blockK, shape.s, blockIdx.x * kQueries / blockQ, ceilDiv(shape.l, blockQ));
    int32_t tile = tiles.next(), next = tiles.next();
    fetch(0, tile);
    fetch(1, next);

    float const unit = kLog2e * rsqrtf(static_cast<float>(kHeadDim));
    Queries queries;
    loadQueries(queries, Rows<T const>(q, shape.l, shape, blockIdx.y, blockIdx.z), warpQuery());
    Softmax softmax;
    auto& out = reinterpret_cast<float(&)[kHeadDim / 2]>(softmax.out);
    hopper::Ring<kSlaStages> ring;
    while (tile >= 0) {
        auto const& stage = shared.stages[ring.stage];
        hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);
        float scores[kSlaKeys / 8][4];
        auto& sums = reinterpret_cast<float(&)[kSlaKeys / 2]>(scores);
        hopper::beginProducts();
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            constexpr int kBoxSteps = kBoxChannels / 16;
            uint64_t const keys = hopper::describe(sharedAddress(stage.keys[step / kBoxSteps]));
            hopper::multiply(T{}, sums, queries[step], keys + step % kBoxSteps * hopper::kNextK, step > 0);
        }
        hopper::commitProducts();
        hopper::waitProducts<0>();
        hopper::settle(sums);

        maskKeys(scores, shape.s - tile * kSlaKeys);
        softmax.step(scores, unit, 0.0f, [](float p) { return p; });
        uint32_t p[kSlaKeys / 16][4];
#pragma unroll
        for (int step = 0; step < kSlaKeys / 16; ++step) packProbabilities<T>(p[step], scores, step);
        uint64_t const values = hopper::describeColumns(sharedAddress(stage.values), kSlaBoxBytes);
        hopper::settle(p);
        hopper::settle(out);
        hopper::beginProducts();
#pragma unroll
        for (int step = 0; step < kSlaKeys / 16; ++step) {
            hopper::multiplyColumns(T{}, out, p[step], values + step * hopper::kNextRows, true);
        }
        hopper::commitProducts();
        int32_t const after = tiles.next();
        hopper::waitProducts<0>();
        hopper::settle(out);
        // Everybody is done with this stage.
        __syncthreads();
        fetch(ring.stage, after);
        tile = next;
        next = after;
        ring.advance();
    }
    Ending& ending = shared.ending();
    uint32_t const state = sharedAddress(&shared.state);
    // Everybody is done with the stages.
    __syncthreads();
    // The projection of the linear branch.
    followKernelAhead();
    fetchLinear(ending, linear, shape, state);
    softmax.normalise();
    __syncthreads();
    addLinear<T, 2>(softmax, queries, ending, shape, state);
    addBias(softmax, ending, [](int) { return float2{1.0f, 1.0f}; });
    storeRows(softmax, Rows<T>(o, shape.l, shape, blockIdx.y, blockIdx.z), ending.rows);
#endif
}

// Enqueues the attention of a call, q, k and v its first inputs, that the kernels take; states are in tiles.
template <class T>
Status launchSla(Shape const& shape, Call const& call, Kept const& kept, int32_t blockQ, int32_t blockK,
                 Linear<T> const& linear, Queue queue) {
    CUtensorMap maps[2];
    for (int i = 0; i < 2; ++i) {
        cudaError_t const error = mapRows(maps[i], call.in[i + 1].data, shape, shape.s, kSlaKeys);
        if (error != cudaSuccess) return {nullptr, error};
    }
    dim3 const grid(ceilDiv(shape.l, kQueries), shape.heads, shape.batch);
    return enqueue(attendSla<T>, grid, hopper::kWarpgroup, sizeof(SlaShared) + hopper::kAlignment, queue, shape,
                   static_cast<T const*>(call.in[0].data), maps[0], maps[1], static_cast<T*>(call.out[0].data), kept,
                   blockQ, blockK, linear);
}

}  // namespace turbo::attn::wgmma
