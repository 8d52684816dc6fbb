// One pass over the keys and values of every head before the attention kernels: it makes the sums of the linear
// branch (attn_linear.cuh), packs keys and values for SageAttention (attn_sage_pack.cuh), or does both.
//
// A block of threads goes through some tiles of one head, while the next one is on its way. Sums over keys are made
// segment by segment and added in order later, so results do not depend on the schedule.
#pragma once

#include <type_traits>

#include "attn.cuh"

namespace turbo::attn {

constexpr int kTile = 64;
constexpr int kTileChunks = kTile * kRowChunks;
// Long enough that sums are little next to what they sum, and 12 heads of 32760 keys, the smaller of the usual
// videos, are two segments for each of 132 multiprocessors.
constexpr int kSegment = 24 * kTile;
// Without sums nothing speaks against many blocks of threads.
template <bool kStates>
constexpr int kPassKeys = kStates ? kSegment : 4 * kTile;
constexpr int kStateSize = kHeadDim * kHeadDim;
// Values are a stage ahead of the tile at hand. So are keys, and those of a whole block stay until its scale is known.
constexpr int kValueStages = 2;
template <int kBlock>
constexpr int kKeyStages = 1 + kBlock / kTile;
// Stages, and phi of one tile.
template <int kBlock, bool kStates>
constexpr size_t kPassShared = (kKeyStages<kBlock> + kValueStages + (kStates ? 1 : 0)) * kTileChunks * sizeof(uint4);
static_assert(kPassShared<128, true> <= 99 * 1024 - 1024);

// Sums of segments, null where there is no linear branch: phi(k)^T v as [batch, heads, segments, feature, channel] and
// phi(k) as [batch, heads, segments, feature].
struct SegmentSums {
    float *states, *sums;
};

// Where a chunk of a tile's row lies in shared memory. Unlike with `rowChunk` alone not only eight rows that follow
// each other touch every bank once, but also two that do together with those 16, 32 and 48 rows on. A flipped bit of
// `chunk` is one of the result.
__device__ inline int tileChunk(int row, int chunk) { return rowChunk(row, chunk ^ (row >> 4 & 3) * 2); }

// The same 16 * step rows on from `at`, which is in the first 16 rows.
__device__ inline int tileStep(int at, int step) { return (at ^ step * 2) + step * 16 * kRowChunks; }

// Starts to copy a tile to shared memory; `copyWait` and a barrier end it.
template <class T>
__device__ inline void loadTile(uint4* shared, Rows<T const> const& rows, int32_t first) {
    constexpr int kRows = kMaxThreads / kRowChunks, kTurns = kTile / kRows;
    static_assert(kRows == 16);
    int const row = threadIdx.x / kRowChunks, channel = threadIdx.x % kRowChunks * 8;
    int const at = tileChunk(row, channel / 8);
    if (rows.vector) {
        T const* const from = rows.at(first + row, channel);
#pragma unroll
        for (int i = 0; i < kTurns; ++i) {
            bool const valid = first + row + i * kRows < rows.count && channel < rows.d;
            copyAsync(shared + tileStep(at, i), from + i * kRows * rows.stride, valid);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < kTurns; ++i) {
            shared[tileStep(at, i)] = loadChunk(rows, first + row + i * kRows, channel);
        }
    }
}

// Makes those of a word's two channels, the first of them `channel`, that a head lacks `lowest`.
__device__ inline void lowerChannels(uint32_t& word, int channel, int32_t d, uint16_t lowest) {
    if (channel >= d) word = lowest;
    if (channel + 1 >= d) word = (word & 0xffffu) | uint32_t{lowest} << 16;
}

// Sixteen channels of a row of a tile of keys, as the chunks of their lower and upper halves. Four lanes share a row,
// each with groups 0 and 1 of its own.
struct KeyGroup {
    uint32_t words[2][4];

    __device__ static int row() { return threadIdx.x / 4; }
    // The number of this lane's group `i` in its row.
    __device__ static int number(int i) { return 4 * i + threadIdx.x % 4; }
    // Where half `half` of it lies in a tile.
    __device__ static int chunk(int i, int half) { return tileChunk(row(), threadIdx.x % 4 * 2) ^ (i * 8 + half); }

    // Channels that a head lacks become `lowest`.
    __device__ KeyGroup(uint4 const* tile, int i, int32_t d, uint16_t lowest) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint4 const from = tile[chunk(i, half)];
            uint32_t(&to)[4] = words[half];
            to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
        }
        if (d == kHeadDim) return;
#pragma unroll
        for (int j = 0; j < 8; ++j) lowerChannels(words[j / 4][j % 4], number(i) * 16 + j * 2, d, lowest);
    }
};

// The lowest finite number: as a channel of a key or of a query it has no part in the softmax over channels.
template <class T>
constexpr uint16_t kLowest = 0xff7f;
template <>
constexpr uint16_t kLowest<__half> = 0xfbff;

// The larger of two numbers, twice.
template <class T>
__device__ inline uint32_t largerPair(uint32_t a, uint32_t b) {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    Pair const c = __hmax2(reinterpret_cast<Pair const&>(a), reinterpret_cast<Pair const&>(b));
    return reinterpret_cast<uint32_t const&>(c);
}

// phi(k) of a tile, zeros where there is no key.
template <class T>
__device__ inline void storePhi(uint4* phi, KeyGroup const (&keys)[2], bool valid) {
    auto const word = [&](int i) { return keys[i / 8].words[i / 4 % 2][i % 4]; };
    uint32_t tops = word(0);
#pragma unroll
    for (int i = 1; i < 16; ++i) tops = largerPair<T>(tops, word(i));
    float top = fmaxf(unpack<T>(tops).x, unpack<T>(tops).y), total = 0.0f, x[32];
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * kLog2e;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        float2 const pair = unpack<T>(word(i));
        x[2 * i] = exp2Approx(fmaf(pair.x, kLog2e, -top));
        x[2 * i + 1] = exp2Approx(fmaf(pair.y, kLog2e, -top));
        total += x[2 * i];
        total += x[2 * i + 1];
    }
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    float const rest = valid ? __fdividef(1.0f, total) : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) words[j] = pack<T>(x[8 * i + 2 * j] * rest, x[8 * i + 2 * j + 1] * rest);
        phi[KeyGroup::chunk(i / 2, i % 2)] = {words[0], words[1], words[2], words[3]};
    }
}

// A warp's part of the sums of a segment: 32 features by 64 channels, and phi alone for half of the features.
template <class T>
struct States {
    float state[2][kTile / 8][4] = {};
    float sum[4] = {};

    __device__ static int feature() { return threadIdx.x / 32 % 4 * 32; }
    __device__ static int half() { return threadIdx.x / 128; }

    __device__ void add(uint4 const* phi, uint4 const* values) {
        int const lane = threadIdx.x % 32;
        uint32_t const ones = pack<T>(1.0f, 1.0f);
        int const features = tileChunk(lane % 8 + lane / 16 * 8, feature() / 8 + lane / 8 % 2);
        int const channels = tileChunk(lane % 16, half() * 8 + lane / 16);
#pragma unroll
        for (int step = 0; step < kTile / 16; ++step) {
            uint32_t a[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                loadMatricesTransposed(a[m], phi + tileStep(features ^ m * 2, step));
                if (half() == m) mma<T>(sum, a[m], ones, ones);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                uint32_t b[4];
                loadMatricesTransposed(b, values + tileStep(channels ^ n * 2, step));
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma<T>(state[m][2 * n], a[m], b[0], b[1]);
                    mma<T>(state[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    __device__ void store(SegmentSums const& to, int64_t segment) const {
        int const lane = threadIdx.x % 32;
        float* const states = to.states + segment * kStateSize + half() * 64 + lane % 4 * 2;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            int const row = feature() + m * 16 + lane / 4;
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
                float const(&x)[4] = state[m][n];
                *reinterpret_cast<float2*>(states + row * kHeadDim + n * 8) = {x[0], x[1]};
                *reinterpret_cast<float2*>(states + (row + 8) * kHeadDim + n * 8) = {x[2], x[3]};
            }
        }
        if (lane % 4 != 0) return;
        float* const sums = to.sums + segment * kHeadDim + feature() + half() * 16 + lane / 4;
        sums[0] = sum[0];
        sums[8] = sum[2];
    }
};

// Packs nothing.
struct Unpacked {
    static constexpr int kBlock = kTile;
    struct Shared {};
    struct To {};

    __device__ Unpacked(To const&, Shape const&, Shared&) {}
    __device__ void measure(KeyGroup const (&)[2], bool) {}
    __device__ void addValues(uint4 const*, int32_t) {}
    template <class Keys>
    __device__ void addKeys(Keys const&, int32_t) {}
};

// `Packer` gets tiles of keys twice, with a barrier in between, and tiles of values once.
template <class T, class Packer, bool kStates>
__global__ void __launch_bounds__(kMaxThreads, 2)
    passKeys(Shape shape, T const* k, T const* v, typename Packer::To packed, SegmentSums sums) {
    extern __shared__ uint4 shared[];
    __shared__ typename Packer::Shared common;
    Rows<T const> const keyRows(k, shape.s, shape, blockIdx.y, blockIdx.z);
    Rows<T const> const valueRows(v, shape.s, shape, blockIdx.y, blockIdx.z);
    constexpr int kKeyParts = kKeyStages<Packer::kBlock>;
    uint4* const values = shared + kKeyParts * kTileChunks;
    uint4* const phi = values + kValueStages * kTileChunks;
    int32_t const first = blockIdx.x * kPassKeys<kStates>;
    int32_t const end = min(first + kPassKeys<kStates>, ceilDiv(shape.s, Packer::kBlock) * Packer::kBlock);
    auto const keysOf = [&](int32_t tile) { return shared + tile / kTile % kKeyParts * kTileChunks; };
    auto const valuesOf = [&](int32_t tile) { return values + tile / kTile % kValueStages * kTileChunks; };
    auto const load = [&](int32_t tile) {
        loadTile(keysOf(tile), keyRows, tile);
        loadTile(valuesOf(tile), valueRows, tile);
    };
    followKernelAhead();
    load(first);
    Packer packer(packed, shape, common);
    States<T> states;
    for (int32_t tile = first; tile < end; tile += kTile) {
        copyWait();
        // Everybody's copies are there, and everybody is done with the tile before.
        __syncthreads();
        if (tile + kTile < end) load(tile + kTile);
        {
            uint4 const* const from = keysOf(tile);
            KeyGroup const keys[2] = {{from, 0, shape.d, kLowest<T>}, {from, 1, shape.d, kLowest<T>}};
            bool const valid = tile + KeyGroup::row() < shape.s;
            packer.measure(keys, valid);
            if constexpr (kStates) storePhi<T>(phi, keys, valid);
        }
        packer.addValues(valuesOf(tile), tile);
        __syncthreads();
        packer.addKeys(keysOf, tile);
        if constexpr (kStates) states.add(phi, valuesOf(tile));
    }
    if constexpr (kStates) {
        states.store(sums, (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
    }
}

template <class T, class Packer, bool kStates>
Status enqueuePass(Shape const& shape, Call const& call, typename Packer::To const& packed, SegmentSums const& sums,
                   Queue queue) {
    dim3 const grid(ceilDiv(shape.s, kPassKeys<kStates>), shape.heads, shape.batch);
    return enqueue(passKeys<T, Packer, kStates>, grid, kMaxThreads, kPassShared<Packer::kBlock, kStates>, queue, shape,
                   static_cast<T const*>(call.in[1].data), static_cast<T const*>(call.in[2].data), packed, sums);
}

}  // namespace turbo::attn
