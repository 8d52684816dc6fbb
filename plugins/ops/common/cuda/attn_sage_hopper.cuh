// SageAttention with values in E4M3 on sm_90a: wgmma and bulk copies.
//
// A thread block is one warpgroup and attends for 64 queries; several of them on a multiprocessor keep its tensor cores
// busy while others are at their softmax, so registers are saved: queries are read from shared memory, and values are
// multiplied for half of the channels at a time. Probabilities are operands in registers, with the fragments of
// mma.sync; packed keys and values come as they lie, one copy each. The tensor cores keep few bits of sums of E4M3, so
// those of one key block start from zero and go into f32.
#pragma once

#include "attn_sage_pack.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

constexpr int kQueries = 64;  // of a thread block
constexpr int kStages = 2;

// Key blocks and quantised queries in shared memory, from a multiple of hopper::kAlignment on.
template <int kBlock>
struct Shared {
    static constexpr int kBytes = kBlock * kHeadDim;
    struct {
        uint8_t keys[kBytes];    // [key, slot]
        uint8_t values[kBytes];  // [channel, slot]
    } stages[kStages];
    uint8_t queries[kQueries * kHeadDim];  // [query, slot]
    alignas(8) uint64_t full[kStages];
};

// The linear branch borrows the stages for its state.
static_assert(sizeof(Shared<64>::stages) >= kStateSize * sizeof(uint16_t));

template <class T, int kBlock, bool kLinear>
__global__ void __launch_bounds__(hopper::kWarpgroup, kBlock == 64 ? 4 : 3)
    attendSage(Shape shape, T const* q, SageKeys packed, T* o, Kept kept, int32_t blockQ, Linear<T> linear) {
#if TURBO_HOPPER
    constexpr int kTiles = kBlock / 8, kSteps = kBlock / 32, kBytes = Shared<kBlock>::kBytes;
    extern __shared__ uint8_t memory[];
    auto& shared = *reinterpret_cast<Shared<kBlock>*>(memory + -sharedAddress(memory) % hopper::kAlignment);
    bool const leads = threadIdx.x == 0;
    if (leads) {
        for (uint64_t& barrier : shared.full) hopper::initBarrier(sharedAddress(&barrier), 1);
        hopper::publishBarriers();
    }
    __syncthreads();

    Rows<T const> const queryRows(q, shape.l, shape, blockIdx.y, blockIdx.z);
    int64_t const firstBlock = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * ceilDiv(shape.s, kBlock);
    auto const fetch = [&](int32_t stage, int32_t tile) {
        if (!leads || tile < 0) return;
        uint32_t const full = sharedAddress(&shared.full[stage]);
        hopper::expectBytes(full, 2 * kBytes);
        auto const* const keys = reinterpret_cast<uint8_t const*>(packed.keys) + (firstBlock + tile) * kBytes;
        auto const* const values = reinterpret_cast<uint8_t const*>(packed.values) + (firstBlock + tile) * kBytes;
        hopper::copyBytes(sharedAddress(shared.stages[stage].keys), keys, kBytes, full);
        hopper::copyBytes(sharedAddress(shared.stages[stage].values), values, kBytes, full);
    };
    KeyTiles<kBlock> tiles(kept, kBlock, shape.s, blockIdx.x * kQueries / blockQ, ceilDiv(shape.l, blockQ));
    int32_t tile = tiles.next(), next = tiles.next();
    fetch(0, tile);
    fetch(1, next);

    float unit;
    {
        uint32_t queries[kHeadDim / 32][4];
        Queries whole;
        float amax = 0.0f;
        // The other half of a block of 128 queries has its part in the scale.
        if (blockQ > kQueries) {
            loadQueries(whole, queryRows, warpQuery() ^ kQueries);
            amax = greatest<T>(whole);
        }
        loadQueries(whole, queryRows, warpQuery());
        float const scale = int8Scale(blockMax(fmaxf(amax, greatest<T>(whole))));
        quantizeQueries<T>(queries, whole, scale);
        // As the copy engine would lay them out.
#pragma unroll
        for (int step = 0; step < kHeadDim / 32; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int const row = threadIdx.x / 32 * kWarpQueries + threadIdx.x % 32 / 4 + i % 2 * 8;
                int const chunk = (2 * step + i / 2) ^ row % 8;
                uint8_t* const to = shared.queries + row * kHeadDim + chunk * 16 + threadIdx.x % 4 * 4;
                *reinterpret_cast<uint32_t*>(to) = queries[step][i];
            }
        }
        hopper::publishToProducts();
        __syncthreads();
        unit = kLog2e * rsqrtf(static_cast<float>(shape.d)) * scale;
    }

    Softmax softmax;
    auto& out = reinterpret_cast<float(&)[kHeadDim / 2]>(softmax.out);
    hopper::Ring<kStages> ring;
    uint64_t const queries = hopper::describe(sharedAddress(shared.queries));
    while (tile >= 0) {
        float const factor = unit * packed.scales[firstBlock + tile];
        auto const& stage = shared.stages[ring.stage];
        uint64_t const keys = hopper::describe(sharedAddress(stage.keys));
        uint64_t const values = hopper::describe<kBlock>(sharedAddress(stage.values));
        hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);

        int32_t products[kTiles * 4];
        hopper::beginProducts();
#pragma unroll
        for (int step = 0; step < kHeadDim / 32; ++step) {
            hopper::multiply(products, queries + step * hopper::kNextK, keys + step * hopper::kNextK, step > 0);
        }
        hopper::commitProducts();
        int32_t const after = tiles.next();
        hopper::waitProducts<0>();
        hopper::settle(products);

        float scores[kTiles][4];
#pragma unroll
        for (int i = 0; i < kTiles * 4; ++i) scores[i / 4][i % 4] = __int2float_rn(products[i]);
        maskKeys(scores, shape.s - tile * kBlock);
        float shrink[2];
        softmax.probabilities(scores, shrink, factor, kFp8Offset, [](float p) { return p; });
        uint32_t p[kSteps][4];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) packProbabilitiesE4m3(p[step], scores, step);

        hopper::settle(p);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            constexpr uint64_t kHalf = kHeadDim / 2 * kBlock / 16;
            float sums[kHeadDim / 4];
            hopper::beginProducts();
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                hopper::multiplyE4m3(sums, p[step], values + half * kHalf + step * hopper::kNextK, step > 0);
            }
            hopper::commitProducts();
            hopper::waitProducts<0>();
            hopper::settle(sums);
#pragma unroll
            for (int i = 0; i < kHeadDim / 4; ++i) {
                float& to = out[half * (kHeadDim / 4) + i];
                to = fmaf(to, shrink[i / 2 % 2], sums[i]);
            }
        }
        // Everybody is done with this stage.
        __syncthreads();
        fetch(ring.stage, after);
        tile = next;
        next = after;
        ring.advance();
    }
    softmax.normalise();
    scaleValues(softmax, packed, shape);
    if constexpr (kLinear) {
        Queries whole;
        loadQueries(whole, queryRows, warpQuery());
        addLinear(softmax, whole, linear, shape, reinterpret_cast<uint4*>(&shared));
    }
    softmax.store(Rows<T>(o, shape.l, shape, blockIdx.y, blockIdx.z));
#endif
}

template <class T, int kBlock, bool kLinear>
Status launch(Shape const& shape, T const* q, SageKeys const& packed, T* o, Kept const& kept, int32_t blockQ,
              Linear<T> const& linear, cudaStream_t stream) {
    dim3 const grid(ceilDiv(shape.l, kQueries), shape.heads, shape.batch);
    constexpr size_t kBytes = sizeof(Shared<kBlock>) + hopper::kAlignment;
    return enqueue(attendSage<T, kBlock, kLinear>, grid, hopper::kWarpgroup, kBytes, stream, shape, q, packed, o, kept,
                   blockQ, linear);
}

}  // namespace turbo::attn::wgmma
