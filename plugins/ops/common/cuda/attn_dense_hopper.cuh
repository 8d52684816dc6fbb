// Dense attention in the activation type on sm_90a, for heads of kHeadDim channels.
//
// A CTA stays and takes item after item: 128 queries of a head, which two warpgroups share half and half, and all keys.
// A third warpgroup fetches, so that keys and values are read once for 128 queries. Products of a tile of keys and of
// the values of the tile before are under way together, beside the softmax of the other warpgroup: they take turns
// (FlashAttention-3, arXiv:2407.08608). Nothing of this stops between items.
#pragma once

#include <algorithm>

#include "attn_rows_hopper.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

constexpr int kDenseRows = 128;  // queries of an item, and keys of a tile
constexpr int kAttending = kDenseRows / kQueries;  // warpgroups
constexpr int kDenseThreads = (kAttending + 1) * hopper::kWarpgroup;
constexpr int kDenseStages = 2;

// 128 rows of 64 channels twice, as the copy engine lays them out.
struct DenseTile {
    static constexpr int kBoxBytes = kDenseRows * hopper::kRow;

    uint8_t boxes[kBoxes][kBoxBytes];

    // A chunk of a row.
    __device__ uint4* at(int row, int chunk) {
        return reinterpret_cast<uint4*>(boxes[chunk / 8]) + row * 8 + (chunk ^ row) % 8;
    }
};

// From a multiple of hopper::kAlignment on.
struct DenseShared {
    // Of each kind tiles in turn, and whether they are there, or every warp is done with them.
    struct Tiles {
        DenseTile tiles[kDenseStages];
        alignas(8) uint64_t full[kDenseStages];
        uint64_t empty[kDenseStages];
        uint8_t rest[hopper::kAlignment - 2 * kDenseStages * sizeof(uint64_t)];
    };
    // In the end a warp's outputs are where its queries were.
    Tiles queries, keys, values;
};

#if TURBO_HOPPER

// The items of a CTA.
struct DenseItems {
    int32_t groups, heads, count;  // groups of queries of a head

    __device__ explicit DenseItems(Shape const& shape)
        : groups(ceilDiv(shape.l, kDenseRows)), heads(shape.heads), count(groups * heads * shape.batch) {}

    __device__ int32_t ofThisCta() const {
        return ceilDiv(count - static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
    }
    __device__ int32_t query(int32_t item) const { return item % groups * kDenseRows; }
    __device__ int32_t head(int32_t item) const { return item / groups % heads; }
    __device__ int32_t batch(int32_t item) const { return item / groups / heads; }
};

// Tiles of one kind, as one side meets them.
struct DenseRing {
    DenseShared::Tiles& of;
    hopper::Ring<kDenseStages> ring;

    __device__ explicit DenseRing(DenseShared::Tiles& tiles) : of(tiles) {}

    __device__ void init() {
        for (int stage = 0; stage < kDenseStages; ++stage) {
            hopper::initBarrier(sharedAddress(&of.full[stage]), 1);
            hopper::initBarrier(sharedAddress(&of.empty[stage]), kAttending * kWarps);
        }
    }

    // By one thread: fetches the next tile, the rows from `row` on.
    __device__ void fetch(CUtensorMap const& map, int32_t head, int32_t row, int32_t batch) {
        hopper::wait(sharedAddress(&of.empty[ring.stage]), ring.parity ^ 1);
        uint32_t const full = sharedAddress(&of.full[ring.stage]);
        hopper::expectBytes(full, sizeof(DenseTile));
        for (int32_t box = 0; box < kBoxes; ++box) {
            int32_t const column = head * 2 * kHeadDim + box * hopper::kRow;
            hopper::copyBox(sharedAddress(of.tiles[ring.stage].boxes[box]), map, full, column, row, batch);
        }
        ring.advance();
    }

    __device__ void await() const { hopper::wait(sharedAddress(&of.full[ring.stage]), ring.parity); }
    __device__ DenseTile& tile() const { return of.tiles[ring.stage]; }
    __device__ uint32_t address() const { return sharedAddress(&of.tiles[ring.stage]); }

    // This warp is done with the tile.
    __device__ void release() {
        if (threadIdx.x % 32 == 0) hopper::arrive(sharedAddress(&of.empty[ring.stage]));
        ring.advance();
    }
};

// Begins to multiply queries by a tile of keys.
template <class T>
__device__ __forceinline__ void multiplyKeys(T, float (&sums)[kDenseRows / 2], uint32_t queries, uint32_t keys) {
    constexpr int kBoxSteps = kBoxChannels / 16;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
        int const box = step / kBoxSteps * DenseTile::kBoxBytes, at = step % kBoxSteps * hopper::kNextK;
        hopper::multiply(T{}, sums, hopper::describe(queries + box) + at, hopper::describe(keys + box) + at, step > 0);
    }
    hopper::commitProducts();
}

// Begins to multiply probabilities by a tile of values.
template <class T>
__device__ __forceinline__ void multiplyValues(T, float (&out)[kHeadDim / 2], uint32_t const (&p)[kDenseRows / 16][4],
                                               uint32_t values, bool add) {
    uint64_t const columns = hopper::describeColumns(values, DenseTile::kBoxBytes);
#pragma unroll
    for (int step = 0; step < kDenseRows / 16; ++step) {
        hopper::multiplyColumns(T{}, out, p[step], columns + step * hopper::kNextRows, step > 0 || add);
    }
    hopper::commitProducts();
}

// What one warpgroup of two does with its half of the queries of all items, tile after tile of keys.
template <class T>
__device__ __forceinline__ void attendItems(Shape const& shape, DenseItems const& items, DenseShared& shared, T* o,
                                            int32_t warpgroup) {
    int32_t const tiles = ceilDiv(shape.s, kDenseRows);
    float const unit = kLog2e * rsqrtf(static_cast<float>(kHeadDim));
    uint32_t const ownRows = warpgroup * kQueries * hopper::kRow;
    // Outputs take the place of queries, while those of the next item are being read.
    DenseRing queries(shared.queries), outputs(shared.queries), keys(shared.keys), values(shared.values);
    Softmax softmax;
    auto& out = reinterpret_cast<float(&)[kHeadDim / 2]>(softmax.out);
    float shrink[2], scores[kDenseRows / 8][4];
    auto& sums = reinterpret_cast<float(&)[kDenseRows / 2]>(scores);
    uint32_t p[kDenseRows / 16][4];

    // The first warpgroup has the first turn, and nobody waits for what follows the last one.
    int64_t turns = int64_t{items.ofThisCta()} * tiles;
    auto const endTurn = [&] {
        if (turns > 1 || warpgroup == 0) hopper::endTurn(warpgroup);
    };
    auto const multiplyByKeys = [&] {
        multiplyKeys(T{}, sums, queries.address() + ownRows, keys.address());
    };
    auto const multiplyByValues = [&](bool add) {
        values.await();
        multiplyValues(T{}, out, p, values.address(), add);
    };
    // Makes probabilities of scores, while `out` and `p` may be under way.
    auto const attend = [&](int32_t tile) {
        hopper::settle(sums);
        keys.release();
        maskKeys(scores, shape.s - tile * kDenseRows);
        softmax.probabilities(scores, shrink, unit, 0.0f, [](float x) { return x; });
    };
    auto const awaitValues = [&] {
        hopper::waitProducts<0>();
        hopper::settle(out);
        values.release();
    };
    auto const pack = [&] {
#pragma unroll
        for (int step = 0; step < kDenseRows / 16; ++step) packProbabilities<T>(p[step], scores, step);
        hopper::settle(p);
    };
    auto const finish = [&](int32_t item, float const (&denominators)[2]) {
        softmax.divide(denominators);
        // All of its warps have multiplied their queries.
        hopper::syncWarpgroup(warpgroup);
        Rows<T> const rows(o, shape.l, shape, items.head(item), items.batch(item));
        storeRows(softmax, rows, items.query(item) + warpgroup * kQueries,
                  [&](int row, int chunk) { return outputs.tile().at(warpgroup * kQueries + row, chunk); });
        // The copy engine writes there next.
        hopper::publishShared();
        __syncwarp();
        outputs.release();
    };

    queries.await();
    keys.await();
    if (warpgroup > 0) hopper::awaitTurn(warpgroup);
    hopper::beginProducts();
    multiplyByKeys();
    endTurn();
    hopper::waitProducts<0>();
    attend(0);
    pack();
    // Probabilities are of this tile of keys of this item.
    int32_t item = static_cast<int32_t>(blockIdx.x), tile = 0;
    while (--turns > 0) {
        bool const first = tile == 0, last = tile + 1 == tiles;
        tile = last ? 0 : tile + 1;
        if (last) {
            queries.ring.advance();
            queries.await();
        }
        keys.await();
        hopper::settle(out);
        hopper::awaitTurn(warpgroup);
        hopper::beginProducts();
        multiplyByKeys();
        multiplyByValues(!first);
        endTurn();
        hopper::waitProducts<1>();
        float const denominators[2] = {softmax.sum[0], softmax.sum[1]};
        if (last) softmax.restart();
        attend(tile);
        awaitValues();
        if (last) {
            finish(item, denominators);
            item += static_cast<int32_t>(gridDim.x);
        } else {
#pragma unroll
            for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= shrink[i / 2 % 2];
        }
        pack();
    }
    hopper::settle(out);
    hopper::beginProducts();
    multiplyByValues(tiles > 1);
    awaitValues();
    finish(item, softmax.sum);
}

#endif  // TURBO_HOPPER

template <class T>
__global__ void __launch_bounds__(kDenseThreads, 1)
    attendDense(Shape shape, __grid_constant__ CUtensorMap const q, __grid_constant__ CUtensorMap const k,
                __grid_constant__ CUtensorMap const v, T* o) {
#if TURBO_HOPPER
    constexpr int32_t kFetching = 40, kMultiplying = 232;  // registers of a thread
    static_assert(hopper::hasRegisters<kDenseThreads>((kFetching + kAttending * kMultiplying) * hopper::kWarpgroup));
    extern __shared__ uint8_t memory[];
    auto& shared = *reinterpret_cast<DenseShared*>(memory + -sharedAddress(memory) % hopper::kAlignment);
    if (threadIdx.x == 0) {
        for (auto* tiles : {&shared.queries, &shared.keys, &shared.values}) DenseRing(*tiles).init();
        hopper::publishBarriers();
    }
    __syncthreads();
    followKernelAhead();

    DenseItems const items(shape);
    // The same in all lanes, which the compiler cannot know.
    int32_t const warpgroup = __shfl_sync(~0u, static_cast<int32_t>(threadIdx.x) / hopper::kWarpgroup, 0);
    if (warpgroup < kAttending) {
        hopper::growRegisters<kMultiplying>();
        attendItems(shape, items, shared, o, warpgroup);
        return;
    }
    hopper::shrinkRegisters<kFetching>();
    if (threadIdx.x != kAttending * hopper::kWarpgroup) return;
    for (CUtensorMap const* map : {&q, &k, &v}) hopper::prefetchMap(*map);
    DenseRing queries(shared.queries), keys(shared.keys), values(shared.values);
    for (int32_t item = static_cast<int32_t>(blockIdx.x); item < items.count; item += static_cast<int32_t>(gridDim.x)) {
        int32_t const head = items.head(item), batch = items.batch(item);
        queries.fetch(q, head, items.query(item), batch);
        for (int32_t row = 0; row < shape.s; row += kDenseRows) {
            keys.fetch(k, head, row, batch);
            values.fetch(v, head, row, batch);
        }
    }
#endif
}

// Enqueues the attention of a call, q, k and v its first inputs, that the kernels take.
template <class T>
Status launchDense(Shape const& shape, Call const& call, int32_t multiprocessors, cudaStream_t stream) {
    CUtensorMap maps[3];
    for (int i = 0; i < 3; ++i) {
        cudaError_t const error = mapRows(maps[i], call.in[i].data, shape, i == 0 ? shape.l : shape.s, kDenseRows);
        if (error != cudaSuccess) return {nullptr, error};
    }
    int32_t const items = ceilDiv(shape.l, kDenseRows) * shape.heads * shape.batch;
    return enqueue(attendDense<T>, dim3(std::min(items, multiprocessors)), kDenseThreads,
                   sizeof(DenseShared) + hopper::kAlignment, {stream, true}, shape, maps[0], maps[1], maps[2],
                   static_cast<T*>(call.out[0].data));
}

}  // namespace turbo::attn::wgmma
