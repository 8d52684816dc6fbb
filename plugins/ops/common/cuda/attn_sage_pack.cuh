// What SageAttention reads: INT8 keys, values in E4M3 or f16, and how queries and probabilities become INT8 and E4M3.
//
// Before the attention kernels the pass over keys and values (attn_keys.cuh) writes, per batch and head,
//   keys    [block, key, slot] in INT8, and of each block its scale and how many of its keys exist,
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

// Sixteen channels in slots, from the words of their lower and upper halves.
template <class T>
__device__ __forceinline__ void toSlots(float (&x)[16], uint32_t const (&words)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float2 const pair = unpack<T>(words[i % 2][i / 2]);
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
    }
}

// What there is to know of a block of keys; as long as the least that bulk copies bring.
struct alignas(16) KeyBlock {
    float scale;
    int32_t keys;
    int32_t unused[2];
};

// Rows of one column of a tensor that a block of threads goes through: a sum of keys for each group.
constexpr int kStatRows = 256;
constexpr int kStatGroups = 8;
static_assert(kStatRows == kStatGroups * kSumRows);

__device__ inline float largest(float a, float b) { return fmaxf(a, fabsf(b)); }

// Sums of keys and largest magnitudes of values over kStatRows tokens: partials [1 or 2, batch, chunks,
// channel]; the latter where the grid is twice the batch deep. A thread takes kWidth channels of a sum of keys, or of
// every eighth token's values.
template <class T, int kWidth>
static __global__ void __launch_bounds__(32 * kStatGroups)
    channelPartials(Shape shape, float const* keySums, T const* v, float* partials) {
    __shared__ float groups[kStatGroups][32 * kWidth];
    followKernelAhead();
    bool const isValues = static_cast<int32_t>(blockIdx.z) >= shape.batch;
    int32_t const batch = isValues ? blockIdx.z - shape.batch : blockIdx.z;
    int64_t const width = shape.width();
    int64_t const first = int64_t{blockIdx.x} * 32 * kWidth, channel = first + threadIdx.x * kWidth;
    float total[kWidth] = {};
    if (channel < width && !isValues) {
        int32_t const sums = (shape.s + kSumRows - 1) / kSumRows, sum = blockIdx.y * kStatGroups + threadIdx.y;
        float const* const from = keySums + (int64_t{batch} * sums + sum) * width + channel;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) total[i] = sum < sums ? from[i] : 0.0f;
    } else if (channel < width) {
        T const* const from = v + batch * shape.s * width + channel;
        int32_t const begin = blockIdx.y * kStatRows + threadIdx.y, end = min((blockIdx.y + 1) * kStatRows, shape.s);
        // Several tokens are on their way at a time.
        constexpr int kAhead = 4;
        for (int32_t row = begin; row < end; row += kAhead * kStatGroups) {
            alignas(16) uint16_t elements[kAhead][kWidth] = {};
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                T const* const at = from + (row + i * kStatGroups) * width;
                if (row + i * kStatGroups >= end) continue;
                if constexpr (kWidth == 8) {
                    *reinterpret_cast<uint4*>(elements[i]) = *reinterpret_cast<uint4 const*>(at);
                } else {
                    elements[i][0] = bitsAt(at);
                }
            }
#pragma unroll
            for (int i = 0; i < kAhead * kWidth; ++i) {
                float const x = unpack<T>(elements[i / kWidth][i % kWidth]).x;
                total[i % kWidth] = largest(total[i % kWidth], x);
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
    followKernelAhead();
    bool const isValues = static_cast<int32_t>(blockIdx.y) >= shape.batch;
    int64_t const width = shape.width(), channel = int64_t{blockIdx.x} * 32 + threadIdx.x;
    float total = 0.0f;
    if (channel < width) {
#pragma unroll 8
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

// The largest of one value per lane, for all lanes.
__device__ inline float warpMax(float x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// The largest of one value per thread, for all threads.
__device__ inline float blockMax(float x) {
    __shared__ float warps[kMaxThreads / 32];
    x = warpMax(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int i = 1; i < static_cast<int>(blockDim.x / 32); ++i) x = fmaxf(x, warps[i]);
    return x;
}

__device__ inline float int8Scale(float amax) { return __fadd_rn(__fdiv_rn(amax, 127.0f), 1e-7f); }

// Sixteen numbers of at most 127 scales, divided by the scale and rounded half away from zero.
__device__ inline void packInt8(uint32_t (&to)[4], float const (&x)[16], float scale) {
    auto const bytes = [&](auto const& quotient) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t const low = __byte_perm(quotient(x[4 * i]), quotient(x[4 * i + 1]), 0x0040);
            uint32_t const high = __byte_perm(quotient(x[4 * i + 2]), quotient(x[4 * i + 3]), 0x0040);
            to[i] = __byte_perm(low, high, 0x5410);
        }
    };
    // Multiplies by what is surely less and surely more than the reciprocal: it is off by one part in 2^24, and so are
    // the quotient rounded to f32 and, from a half on, twice, its sum with a half. What differs is near to a tie.
    float const rest = __frcp_rn(scale), less = rest * (1 - 0x1p-21f), more = rest * (1 + 0x1p-21f);
    bool near = false;
    bytes([&](float x) {
        // Adding it leaves the nearest integer in the low bits.
        constexpr float kMagic = 0x1.8p23f;
        float const sum = fmaf(x, less, kMagic);
        near |= !(fmaf(x, more, kMagic) == sum);
        return __float_as_uint(sum);
    });
    if (!near) return;
    bytes([&](float x) {
        // The first step leaves less than one unit in the last place, the second none (Markstein, 1990). A quotient so
        // small that remainders underflow rounds to zero all the same.
        float q = x * rest;
        q = fmaf(fmaf(-q, scale, x), rest, q);
        q = fmaf(fmaf(-q, scale, x), rest, q);
        return static_cast<uint32_t>(static_cast<int32_t>(q + copysignf(0.5f, q)));
    });
}

// Packs the tiles of the pass over keys and values: smooths and quantises keys by blocks, and writes values in E4M3,
// transposed and scaled per channel, or in f16.
template <class T, int kKeys, bool kFp8>
class SagePacker {
  public:
    static constexpr int kBlock = kKeys;
    struct Shared {
        float4 means[8][4];  // [four of the 32 channels of a lane, lane % 4]
        float warps[kMaxThreads / 32];
    };
    struct To {
        float const *means, *valueMax;  // [batch, channel]
        uint4* keys;
        KeyBlock* blocks;
        uint4* values;
    };

    __device__ SagePacker(To const& to, Shape const& shape, Shared& shared)
        : shared_(shared), s_(shape.s), d_(shape.d) {
        int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
        int64_t const firstBlock = head * ceilDiv(shape.s, kBlock), channels = head * shape.d;
        keys_ = to.keys + firstBlock * (kBlock * kKeyChunks);
        blocks_ = to.blocks + firstBlock;
        values_ = to.values + firstBlock * (kBlock * kValueChunks);
        if (threadIdx.x < kHeadDim) {
            int const channel = threadIdx.x, within = channel / 64 * 16 + channel % 16;
            // The mean of a channel that the head lacks is what stands for its keys.
            float const mean = channel < shape.d ? to.means[channels + channel] : unpack<T>(kLowest<T>).x;
            reinterpret_cast<float*>(&shared_.means[within / 4][channel / 16 % 4])[within % 4] = mean;
        }
        if constexpr (kFp8) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int const channel = valueChannel(i);
                float const top = channel < shape.d ? to.valueMax[channels + channel] : 0.0f;
                // A channel of zeros stays zero.
                factors_[i] = top > 0.0f ? __fdiv_rn(kFp8ValueMax, top) : 0.0f;
            }
        }
        // Means are there.
        __syncthreads();
    }

    __device__ void measure(KeyGroup const (&keys)[2], bool valid) {
        float amax = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float x[16];
            smooth(x, keys[i], i);
#pragma unroll
            for (int j = 0; j < 16; ++j) amax = largest(amax, x[j]);
        }
        amax_ = fmaxf(amax_, valid ? amax : 0.0f);
        float const all = warpMax(amax_);
        if (threadIdx.x % 32 == 0) shared_.warps[threadIdx.x / 32] = all;
    }

    // `keysOf` tells where tiles lie.
    template <class Keys>
    __device__ void addKeys(Keys const& keysOf, int32_t tile) {
        int32_t const start = tile + kTile - kBlock;
        if (start % kBlock != 0) return;
        float amax = shared_.warps[0];
#pragma unroll
        for (int i = 1; i < kMaxThreads / 32; ++i) amax = fmaxf(amax, shared_.warps[i]);
        float const scale = int8Scale(amax);
        // Unrolling would only cost registers.
#pragma unroll 1
        for (int i = 0; i < 2 * kBlock / kTile; ++i) {
            int32_t const part = start + i / 2 * kTile;
            quantize(keysOf(part), part, i % 2, scale);
        }
        if (threadIdx.x == 0) blocks_[tile / kBlock] = {scale, min(kBlock, s_ - start), {}};
        amax_ = 0.0f;
    }

    __device__ void addValues(uint4 const* values, int32_t tile) {
        if constexpr (kFp8) {
            // Rows of matrices are keys, chosen such that lane t of four gets slots of chunk t of its channel.
            int const lane = threadIdx.x % 32;
            int const key = lane % 8 / 2 * 16 + slotElement(lane / 8 * 2 + lane % 2);
            int const at = tileChunk(key, valueChannel(0) / 8);
            uint4* const to = values_ + tile / kBlock * (kBlock * kValueChunks);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t words[4];
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint32_t pairs[4];
                    // Eight slots on are four keys.
                    loadMatricesTransposed(pairs, values + (at ^ (4 * j + i)) + 4 * j * kRowChunks);
#pragma unroll
                    for (int w = 0; w < 2; ++w) {
                        float2 const low = unpack<T>(pairs[2 * w]), high = unpack<T>(pairs[2 * w + 1]);
                        float const factor = factors_[i];
                        words[2 * j + w] =
                            packE4m3(low.x * factor, low.y * factor, high.x * factor, high.y * factor);
                    }
                }
                int const chunk = tile % kBlock / 16 + lane % 4;
                to[swizzle<kBlock / 16>(valueChannel(i), chunk)] = {words[0], words[1], words[2], words[3]};
            }
        } else {
            int const at = rowChunk(threadIdx.x / kRowChunks, threadIdx.x % kRowChunks);
            uint4* const to = values_ + tile * kRowChunks + at;
            // Unrolling would only cost registers.
#pragma unroll 1
            for (int i = 0; i < kTile / 16; ++i) {
                uint4 const from = values[tileStep(at, i)];
                auto const half = [](uint32_t word) {
                    float2 const pair = unpack<T>(word);
                    return pack<__half>(pair.x, pair.y);
                };
                to[i * 16 * kRowChunks] = {half(from.x), half(from.y), half(from.z), half(from.w)};
            }
        }
    }

  private:
    static constexpr int kKeyChunks = kHeadDim / 16;
    static constexpr int kValueChunks = kKeyChunks * (kFp8 ? 1 : 2);

    // This lane's channels of values, one of each half of its warp's sixteen.
    __device__ static int valueChannel(int i) { return threadIdx.x / 32 * 16 + i * 8 + threadIdx.x % 32 / 4; }

    // This lane's group `i`, in slots.
    __device__ void smooth(float (&x)[16], KeyGroup const& keys, int i) const {
        toSlots<T>(x, keys.words);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float4 const mean = shared_.means[i * 4 + half * 2 + j][threadIdx.x % 4];
                float* const slots = x + 8 * j + half * 2;
                slots[0] -= mean.x;
                slots[1] -= mean.y;
                slots[4] -= mean.z;
                slots[5] -= mean.w;
            }
        }
    }

    __device__ void quantize(uint4 const* keys, int32_t tile, int i, float scale) const {
        float x[16];
        smooth(x, KeyGroup(keys, i, d_, kLowest<T>), i);
        uint32_t words[4];
        packInt8(words, x, scale);
        int const row = KeyGroup::row();
        uint4 const chunk = {words[0], words[1], words[2], words[3]};
        keys_[tile * kKeyChunks + swizzle<kKeyChunks>(row, KeyGroup::number(i))] = tile + row < s_ ? chunk : uint4{};
    }

    Shared& shared_;
    uint4* keys_;
    KeyBlock* blocks_;
    uint4* values_;
    float factors_[2] = {};
    float amax_ = 0.0f;  // of this thread's keys of the block
    int32_t s_, d_;
};

// What the queries of all heads read.
struct SageKeys {
    uint4 const* keys;
    KeyBlock const* blocks;
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
        float x[16];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float2 const pair = unpack<T>(q[2 * step + i / 4][i / 2 % 2 + i % 2 * 2]);
            x[2 * i] = pair.x;
            x[2 * i + 1] = pair.y;
        }
        packInt8(to[step], x, scale);
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
