// SageAttention with values in E4M3 on sm_90a: wgmma and bulk copies.
//
// A thread block is one warpgroup and attends for 64 queries; several of them on a multiprocessor keep its tensor cores
// busy while others are at their softmax, so registers are saved: queries are read from shared memory, and values are
// multiplied for halves of the channels. Probabilities are operands in registers, with the fragments of mma.sync; packed
// keys and values come as they lie, one copy each, and with them what is to be known of their block: one thread alone
// goes through the list. The tensor cores keep few bits of sums of E4M3, so those of one key block start from zero and go
// into f32.
#pragma once

#include <algorithm>
#include <climits>

#include "attn_linear_hopper.cuh"
#include "attn_rows_hopper.cuh"
#include "attn_sage_pack.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

constexpr int kStages = 2;

// Shared memory, from a multiple of hopper::kAlignment on.
template <int kBlock>
struct Shared {
    static constexpr int kBytes = kBlock * kHeadDim;
    static constexpr int kQueriesAt = kStages * 2 * kBytes;
    static_assert(kQueriesAt >= int(sizeof(Ending::state)));  // fetchLinear says why
    // Stages of keys [key, slot] and values [channel, slot], then queries in INT8, [query, slot]; in their place the
    // ending.
    uint8_t tiles[std::max(kQueriesAt + kQueries * kHeadDim, int(sizeof(Ending)))];
    float2 valueScales[kHeadDim / 2];
    KeyBlock blocks[kStages];
    alignas(8) uint64_t full[kStages];  // its keys, values and block are there
    uint64_t empty[kStages];            // every warp is done with it
    uint64_t state;                     // that of the linear branch is there

    __device__ uint32_t keys(int stage) const { return sharedAddress(tiles + stage * 2 * kBytes); }
    __device__ uint32_t values(int stage) const { return keys(stage) + kBytes; }
    __device__ uint8_t* queries() { return tiles + kQueriesAt; }
    __device__ Ending& ending() { return reinterpret_cast<Ending&>(tiles); }
};

#if TURBO_HOPPER

// Four groups of sixteen channels, each of another query of this thread's block, as fours of which eight lanes have a
// row.
struct QueryGroups {
    uint32_t words[4][2][4];

    __device__ static int row(int i) { return i * (hopper::kWarpgroup / 8) + threadIdx.x / 8; }
    __device__ static int number() { return threadIdx.x % 8; }

    template <class T>
    __device__ QueryGroups(Rows<T const> const& rows, int32_t first) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            uint4 const from = loadChunk(rows, first + row(i / 2), number() * 16 + i % 2 * 8);
            uint32_t(&to)[4] = words[i / 2][i % 2];
            to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
        }
    }

    // The largest magnitude.
    template <class T>
    __device__ float greatest() const {
        float amax = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            float2 const pair = unpack<T>(words[i / 8][i / 4 % 2][i % 4]);
            amax = largest(largest(amax, pair.x), pair.y);
        }
        return amax;
    }

    // Writes them in INT8 and slots, as the copy engine would lay rows out.
    template <class T>
    __device__ void quantize(uint8_t* to, float scale) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x[16];
            toSlots<T>(x, words[i]);
            uint32_t bytes[4];
            packInt8(bytes, x, scale);
            int const chunk = number() ^ row(i) % 8;
            *reinterpret_cast<uint4*>(to + row(i) * kHeadDim + chunk * 16) = {bytes[0], bytes[1], bytes[2], bytes[3]};
        }
    }
};

#endif  // TURBO_HOPPER

template <class T, int kBlock, bool kLinear>
__global__ void __launch_bounds__(hopper::kWarpgroup, kBlock == 64 ? 4 : 3)
    attendSage(Shape shape, T const* q, SageKeys packed, T* o, Kept kept, int32_t blockQ, Linear<T> linear) {
#if TURBO_HOPPER
    constexpr int kTiles = kBlock / 8, kSteps = kBlock / 32;
    // How many halves of the channels, and how many tiles of the linear branch's state, are being multiplied at a time,
    // as registers allow.
    constexpr int kAtOnce = kBlock == 64 ? 1 : 2;
    extern __shared__ uint8_t memory[];
    auto& shared = *reinterpret_cast<Shared<kBlock>*>(memory + -sharedAddress(memory) % hopper::kAlignment);
    bool const leads = threadIdx.x == 0;
    int const lane = threadIdx.x % 32;
    if (leads) {
        for (uint64_t& barrier : shared.full) hopper::initBarrier(sharedAddress(&barrier), 1);
        for (uint64_t& barrier : shared.empty) hopper::initBarrier(sharedAddress(&barrier), kWarps);
        if constexpr (kLinear) hopper::initBarrier(sharedAddress(&shared.state), 1);
        hopper::publishBarriers();
    }
    // Ahead is the projection of the linear branch, which is for the end, or else the pass over keys and values.
    if constexpr (!kLinear) followKernelAhead();
    int64_t const firstBlock = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * ceilDiv(shape.s, kBlock);
    KeyTiles<kBlock> tiles(kept, kBlock, shape.s, blockIdx.x * kQueries / blockQ, ceilDiv(shape.l, blockQ));
    // By one thread: starts to fill a stage with the next key block.
    auto const fetch = [&](int stage) {
        int32_t const tile = tiles.next();
        if (tile < 0) return;
        constexpr uint32_t kBytes = Shared<kBlock>::kBytes;
        uint32_t const full = sharedAddress(&shared.full[stage]);
        hopper::expectBytes(full, 2 * kBytes + sizeof(KeyBlock));
        int64_t const block = firstBlock + tile, at = block * kBytes;
        hopper::copyBytes(sharedAddress(&shared.blocks[stage]), packed.blocks + block, sizeof(KeyBlock), full);
        hopper::copyBytes(shared.keys(stage), reinterpret_cast<uint8_t const*>(packed.keys) + at, kBytes, full);
        hopper::copyBytes(shared.values(stage), reinterpret_cast<uint8_t const*>(packed.values) + at, kBytes, full);
    };
    int32_t left = tiles.count();
    if (leads) fetch(0);

    Rows<T const> const queryRows(q, shape.l, shape, blockIdx.y, blockIdx.z);
    int32_t const firstQuery = blockIdx.x * kQueries;
    float unit;
    {
        float amax = 0.0f;
        // The other half of a block of 128 queries has its part in the scale.
        if (blockQ > kQueries) amax = QueryGroups(queryRows, firstQuery ^ kQueries).template greatest<T>();
        QueryGroups const groups(queryRows, firstQuery);
        float const scale = int8Scale(blockMax(fmaxf(amax, groups.template greatest<T>())));
        groups.template quantize<T>(shared.queries(), scale);
        static_assert(kHeadDim == hopper::kWarpgroup);
        int const channel = threadIdx.x;
        float const* const tops = packed.valueMax + blockIdx.z * shape.width() + int64_t{blockIdx.y} * shape.d;
        float const scaleOfChannel = channel < shape.d ? tops[channel] * (1 / kFp8ValueMax) : 0.0f;
        reinterpret_cast<float*>(shared.valueScales)[channel] = scaleOfChannel;
        hopper::publishShared();
        unit = kLog2e * rsqrtf(static_cast<float>(shape.d)) * scale;
    }
    __syncthreads();

    Softmax softmax;
    auto& out = reinterpret_cast<float(&)[kHeadDim / 2]>(softmax.out);
    uint64_t const queries = hopper::describe(sharedAddress(shared.queries()));
    // Whether the next stage was seen to be there, while products were under way.
    bool isThere = false;
    for (hopper::Ring<kStages> ring; left > 0; --left) {
        if (!isThere) hopper::wait(sharedAddress(&shared.full[ring.stage]), ring.parity);
        uint64_t const keys = hopper::describe(shared.keys(ring.stage));
        uint64_t const values = hopper::describe<kBlock>(shared.values(ring.stage));
        int32_t products[kTiles][4];
        auto& sumsOfProducts = reinterpret_cast<int32_t(&)[kTiles * 4]>(products);
        hopper::beginProducts();
#pragma unroll
        for (int i = 0; i < kHeadDim / 32; ++i) {
            hopper::multiply(sumsOfProducts, queries + i * hopper::kNextK, keys + i * hopper::kNextK, i > 0);
        }
        hopper::commitProducts();
        // The lane that reads it also says when the warp is done with the stage.
        KeyBlock block;
        if (lane == 0) block = shared.blocks[ring.stage];
        uint32_t const done = sharedAddress(&shared.empty[ring.stage]);
        ring.advance();
        if (leads) {
            // The block before this one had the other stage.
            hopper::wait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
            fetch(ring.stage);
        }
        float const factor = unit * __shfl_sync(~0u, block.scale, 0);
        int32_t const keysLeft = __shfl_sync(~0u, block.keys, 0);
        hopper::waitProducts<0>();
        hopper::settle(sumsOfProducts);

        // Of three integers the GPU finds the greatest at once, of floats of two. Only the last block may lack keys: a
        // branch amid all this would keep conversions from filling the wait for the other lanes' maxima.
        uint32_t p[kSteps][4];
        float shrink[2];
        auto const weigh = [&](auto lacksKeys) {
            if constexpr (decltype(lacksKeys)::value) maskKeys(products, keysLeft, INT_MIN);
            float scores[kTiles][4], tops[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int32_t top = INT_MIN;
#pragma unroll
                for (int n = 0; n < kTiles; ++n) top = __vimax3_s32(top, products[n][2 * r], products[n][2 * r + 1]);
                tops[r] = __int2float_rn(top);
            }
#pragma unroll
            for (int i = 0; i < kTiles * 4; ++i) scores[i / 4][i % 4] = __int2float_rn(products[i / 4][i % 4]);
            // The least integer times a small factor is not far enough from the others.
            if constexpr (decltype(lacksKeys)::value) maskKeys(scores, keysLeft);
            softmax.probabilities(scores, tops, shrink, factor, kFp8Offset, [](float p) { return p; });
#pragma unroll
            for (int i = 0; i < kSteps; ++i) packProbabilitiesE4m3(p[i], scores, i);
        };
        if (keysLeft < kBlock) {
            weigh(std::true_type{});
        } else {
            weigh(std::false_type{});
        }
        hopper::settle(p);
#pragma unroll
        for (int first = 0; first < 2; first += kAtOnce) {
            constexpr uint64_t kHalf = kHeadDim / 2 * kBlock / 16;
            float sums[kAtOnce][kHeadDim / 4];
            hopper::beginProducts();
#pragma unroll
            for (int half = 0; half < kAtOnce; ++half) {
                uint64_t const channels = values + (first + half) * kHalf;
#pragma unroll
                for (int i = 0; i < kSteps; ++i) {
                    hopper::multiplyE4m3(sums[half], p[i], channels + i * hopper::kNextK, i > 0);
                }
                hopper::commitProducts();
            }
            if (first + kAtOnce == 2) isThere = hopper::isOver(sharedAddress(&shared.full[ring.stage]), ring.parity);
#pragma unroll
            for (int half = 0; half < kAtOnce; ++half) {
                if (half + 1 < kAtOnce) {
                    hopper::waitProducts<1>();
                } else {
                    hopper::waitProducts<0>();
                }
                if (first + half == 1 && lane == 0) hopper::arrive(done);
                hopper::settle(sums[half]);
#pragma unroll
                for (int i = 0; i < kHeadDim / 4; ++i) {
                    float& to = out[(first + half) * (kHeadDim / 4) + i];
                    to = fmaf(to, shrink[i / 2 % 2], sums[half][i]);
                }
            }
        }
    }

    // Everybody is done with the stages.
    __syncthreads();
    Ending& ending = shared.ending();
    if constexpr (kLinear) {
        loadRows(ending.rows, queryRows, firstQuery, kQueries);
        followKernelAhead();
        fetchLinear(ending, linear, shape, sharedAddress(&shared.state));
    }
    softmax.normalise();
    auto const scale = [&](int n) { return shared.valueScales[n * 4 + lane % 4]; };
    if constexpr (kLinear) {
        copyWait();
        __syncthreads();
        addBias(softmax, ending, scale);
        // Not amid what follows: registers would not suffice.
        __syncwarp();
        Queries whole;
        loadQueries(whole, ending.rows);
        addLinear<T, kAtOnce>(softmax, whole, ending, shape, sharedAddress(&shared.state));
    } else {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
            float2 const factor = scale(n);
#pragma unroll
            for (int i = 0; i < 4; ++i) softmax.out[n][i] *= i % 2 == 0 ? factor.x : factor.y;
        }
    }
    storeRows(softmax, Rows<T>(o, shape.l, shape, blockIdx.y, blockIdx.z), ending.rows);
#endif
}

template <class T, int kBlock, bool kLinear>
Status launch(Shape const& shape, T const* q, SageKeys const& packed, T* o, Kept const& kept, int32_t blockQ,
              Linear<T> const& linear, Queue queue) {
    dim3 const grid(ceilDiv(shape.l, kQueries), shape.heads, shape.batch);
    constexpr size_t kBytes = sizeof(Shared<kBlock>) + hopper::kAlignment;
    return enqueue(attendSage<T, kBlock, kLinear>, grid, hopper::kWarpgroup, kBytes, queue, shape, q, packed, o, kept,
                   blockQ, linear);
}

}  // namespace turbo::attn::wgmma
