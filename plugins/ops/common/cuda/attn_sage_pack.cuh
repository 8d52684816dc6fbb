// What SageAttention reads: INT8 keys, values in E4M3 or f16, and how queries and probabilities become INT8 and E4M3.
//
// Before the attention kernels the ones of this file write, per batch and head,
//   keys    [block, key, slot] in INT8, and a scale for each block,
//   values  [block, channel, slot] in E4M3, or [block, key, channel] in f16,
// padded with zeros to whole blocks and kHeadDim channels, and each block as it lies in shared memory: rows of
// chunks of 16 bytes, swizzled. Slots are the channels or keys in groups of sixteen, each in the order of
// `slotElement`. Queries are quantised where they are used.
#pragma once

#include "attn_linear.cuh"

namespace turbo::attn {

// Lifts probabilities to the top of the E4M3 range: 2^8.807 is about 448.
constexpr float kFp8Offset = 8.807f;
constexpr float kFp8ValueMax = 2.25f;

// Two tiles of C, side by side, hold of sixteen columns 2t, 2t + 1, 8 + 2t and 8 + 2t + 1 in lane t: the word
// of four bytes that the lane gives as A. Slot i of sixteen is this column.
__device__ constexpr int slotElement(int i) { return i % 4 / 2 * 8 + i / 4 * 2 + i % 2; }

// Rows of one column of a tensor that a block of threads goes through.
constexpr int kStatRows = 256;
constexpr int kStatGroups = 8;

__device__ inline float largest(float a, float b) { return fmaxf(a, fabsf(b)); }

// Sums of keys and largest magnitudes of values over kStatRows tokens: partials [1 or 2, batch, chunks,
// channel]; the latter where the grid is twice the batch deep. A thread takes kWidth channels of every eighth
// token.
template <class T, int kWidth>
static __global__ void __launch_bounds__(32 * kStatGroups)
    channelPartials(Shape shape, T const* k, T const* v, float* partials) {
    __shared__ float groups[kStatGroups][32 * kWidth];
    bool const isValues = static_cast<int32_t>(blockIdx.z) >= shape.batch;
    int32_t const batch = isValues ? blockIdx.z - shape.batch : blockIdx.z;
    int64_t const width = shape.width();
    int64_t const first = int64_t{blockIdx.x} * 32 * kWidth, channel = first + threadIdx.x * kWidth;
    T const* const from = (isValues ? v : k) + batch * shape.s * width + channel;
    int32_t const begin = blockIdx.y * kStatRows, end = min(begin + kStatRows, shape.s);
    float total[kWidth] = {};
    if (channel < width) {
        for (int32_t row = begin + threadIdx.y; row < end; row += kStatGroups) {
            alignas(16) uint16_t elements[kWidth];
            if constexpr (kWidth == 8) {
                *reinterpret_cast<uint4*>(elements) = *reinterpret_cast<uint4 const*>(from + row * width);
            } else {
                elements[0] = bitsAt(from + row * width);
            }
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                float const x = unpack<T>(elements[i]).x;
                total[i] = isValues ? largest(total[i], x) : total[i] + x;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) groups[threadIdx.y][threadIdx.x * kWidth + i] = total[i];
    __syncthreads();
    int const mine = threadIdx.y * 32 + threadIdx.x;
    if (mine >= 32 * kWidth || first + mine >= width) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kStatGroups; ++i) {
        float const x = groups[i][mine];
        sum = isValues ? largest(sum, x) : sum + x;
    }
    partials[(int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * width + first + mine] = sum;
}

// Means of keys and largest magnitudes of values, [1 or 2, batch, channel].
static __global__ void __launch_bounds__(32 * kStatGroups)
    channelStats(Shape shape, int32_t chunks, float const* partials, float* stats) {
    __shared__ float groups[kStatGroups][32];
    bool const isValues = static_cast<int32_t>(blockIdx.y) >= shape.batch;
    int64_t const width = shape.width(), channel = int64_t{blockIdx.x} * 32 + threadIdx.x;
    float total = 0.0f;
    if (channel < width) {
        for (int32_t i = threadIdx.y; i < chunks; i += kStatGroups) {
            float const x = partials[(int64_t{blockIdx.y} * chunks + i) * width + channel];
            total = isValues ? largest(total, x) : total + x;
        }
    }
    groups[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y != 0 || channel >= width) return;
    for (int i = 1; i < kStatGroups; ++i) {
        float const x = groups[i][threadIdx.x];
        total = isValues ? largest(total, x) : total + x;
    }
    stats[blockIdx.y * width + channel] = isValues ? total : __fdiv_rn(total, static_cast<float>(shape.s));
}

// The largest of one value per thread, for all threads.
__device__ inline float blockMax(float x) {
    __shared__ float warps[kMaxThreads / 32];
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int i = 1; i < static_cast<int>(blockDim.x / 32); ++i) x = fmaxf(x, warps[i]);
    return x;
}

__device__ inline float int8Scale(float amax) { return __fadd_rn(__fdiv_rn(amax, 127.0f), 1e-7f); }

// Rounds half away from zero.
__device__ inline uint32_t int8(float x, float scale) {
    float const q = __fdiv_rn(x, scale);
    return static_cast<uint32_t>(static_cast<int32_t>(q + copysignf(0.5f, q))) & 0xffu;
}

__device__ inline uint32_t packInt8(float2 low, float2 high, float scale) {
    return int8(low.x, scale) | int8(low.y, scale) << 8 | int8(high.x, scale) << 16 |
           int8(high.y, scale) << 24;
}

// Smooths and quantises one block of keys.
template <class T, int kBlock>
__global__ void __launch_bounds__(kMaxThreads)
    packKeys(Shape shape, T const* k, float const* means, uint4* keys, float* scales) {
    constexpr int kUnits = kBlock * (kHeadDim / 16) / kMaxThreads;
    Rows<T const> const rows(k, shape.s, shape, blockIdx.y, blockIdx.z);
    means += blockIdx.z * shape.width() + int64_t{blockIdx.y} * shape.d;
    int64_t const block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    // Sixteen channels of one key at a time.
    float x[kUnits][16];
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
        int const unit = i * kMaxThreads + threadIdx.x, channel = unit % (kHeadDim / 16) * 16;
        int32_t const row = blockIdx.x * kBlock + unit / (kHeadDim / 16);
        loadFloats(x[i], rows, row, channel);
        loadFloats(x[i] + 8, rows, row, channel + 8);
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            if (row < shape.s && channel + j < shape.d) x[i][j] -= means[channel + j];
            amax = largest(amax, x[i][j]);
        }
    }
    amax = blockMax(amax);
    float const scale = int8Scale(amax);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            words[j] = packInt8({x[i][slotElement(4 * j)], x[i][slotElement(4 * j + 1)]},
                                {x[i][slotElement(4 * j + 2)], x[i][slotElement(4 * j + 3)]}, scale);
        }
        int const unit = i * kMaxThreads + threadIdx.x, row = unit / (kHeadDim / 16), chunk = unit % (kHeadDim / 16);
        keys[block * kUnits * kMaxThreads + swizzle<kHeadDim / 16>(row, chunk)] = {words[0], words[1], words[2],
                                                                                   words[3]};
    }
    if (threadIdx.x == 0) scales[block] = scale;
}

// Values of one block in E4M3, transposed, scaled per channel. A thread takes the four keys of a word, eight
// channels.
template <class T, int kBlock>
__global__ void __launch_bounds__(kMaxThreads)
    packValuesFp8(Shape shape, T const* v, float const* amax, uint32_t* values) {
    constexpr int kWords = kBlock / 4;
    Rows<T const> const rows(v, shape.s, shape, blockIdx.y, blockIdx.z);
    amax += blockIdx.z * shape.width() + int64_t{blockIdx.y} * shape.d;
    int64_t const block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    values += block * (kHeadDim * kWords);
#pragma unroll
    for (int unit = threadIdx.x; unit < kWords * kRowChunks; unit += kMaxThreads) {
        // Two lanes read the 32 bytes of a memory sector; every other lane writes words that lie side by
        // side.
        int const word = unit / 2 % kWords, channel = (unit / (2 * kWords) * 2 + unit % 2) * 8;
        float x[4][8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int32_t const key = blockIdx.x * kBlock + word / 4 * 16 + slotElement(word % 4 * 4 + i);
            loadFloats(x[i], rows, key, channel);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float const top = channel + j < shape.d ? amax[channel + j] : 0.0f;
            // A channel of zeros stays zero.
            float const factor = top > 0.0f ? __fdiv_rn(kFp8ValueMax, top) : 0.0f;
            values[swizzle<kWords / 4>(channel + j, word / 4) * 4 + word % 4] =
                packE4m3(x[0][j] * factor, x[1][j] * factor, x[2][j] * factor, x[3][j] * factor);
        }
    }
}

// Values of one block in f16.
template <class T, int kBlock>
__global__ void __launch_bounds__(kMaxThreads) packValuesF16(Shape shape, T const* v, uint4* values) {
    Rows<T const> const rows(v, shape.s, shape, blockIdx.y, blockIdx.z);
    int64_t const block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    values += block * (kBlock * kRowChunks);
#pragma unroll
    for (int unit = threadIdx.x; unit < kBlock * kRowChunks; unit += kMaxThreads) {
        float x[8];
        int const key = unit / kRowChunks, chunk = unit % kRowChunks;
        loadFloats(x, rows, blockIdx.x * kBlock + key, chunk * 8);
        values[rowChunk(key, chunk)] = {pack<__half>(x[0], x[1]), pack<__half>(x[2], x[3]),
                                        pack<__half>(x[4], x[5]), pack<__half>(x[6], x[7])};
    }
}

// What the queries of all heads read.
struct SageKeys {
    uint4 const* keys;
    float const* scales;
    uint4 const* values;
    float const* valueMax;  // [batch, channel], where values are E4M3
};

// The largest magnitude of this thread's queries.
template <class T>
__device__ inline float greatest(Queries const& q) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeadDim / 4; ++i) {
        float2 const pair = unpack<T>(q[i / 4][i % 4]);
        amax = largest(largest(amax, pair.x), pair.y);
    }
    return amax;
}

// INT8 fragments of depth 32 from two of depth 16, channels in slots.
template <class T>
__device__ inline void quantizeQueries(uint32_t (&to)[kHeadDim / 32][4], Queries const& q, float scale) {
#pragma unroll
    for (int step = 0; step < kHeadDim / 32; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t const(&words)[4] = q[2 * step + i / 2];
            to[step][i] = packInt8(unpack<T>(words[i % 2]), unpack<T>(words[i % 2 + 2]), scale);
        }
    }
}

// Probabilities of 32 keys as an E4M3 fragment, keys in slots.
template <int kTiles>
__device__ inline void packProbabilitiesE4m3(uint32_t (&to)[4], float const (&p)[kTiles][4], int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float const(&low)[4] = p[4 * step + i / 2 * 2];
        float const(&high)[4] = p[4 * step + i / 2 * 2 + 1];
        int const r = i % 2 * 2;
        to[i] = packE4m3(low[r], low[r + 1], high[r], high[r + 1]);
    }
}

// Gives outputs the scales of the values' channels.
__device__ inline void scaleValues(Softmax& softmax, SageKeys const& packed, Shape const& shape) {
    float const* const amax = packed.valueMax + blockIdx.z * shape.width() + int64_t{blockIdx.y} * shape.d;
#pragma unroll
    for (int i = 0; i < kHeadDim / 4; ++i) {
        int const channel = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float const scale = channel < shape.d ? amax[channel] / kFp8ValueMax : 0.0f;
        softmax.out[i / 2][i % 2] *= scale;
        softmax.out[i / 2][i % 2 + 2] *= scale;
    }
}

}  // namespace turbo::attn
