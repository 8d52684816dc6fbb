// What the attention kernels share: the shape of a problem, rows of one head, lists of key blocks, the
// softmax with a running maximum (FlashAttention, arXiv:2205.14135), and how kernels are launched.
//
// A block of threads attends for 16 queries per warp; a warp holds its queries, scores and sums in registers,
// in the layout of attn_mma.cuh. Channels of a head are padded with zeros to kHeadDim.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "attn_mma.cuh"
#include "op.h"
#include "overlap.cuh"

namespace turbo::attn {

constexpr float kLog2e = 1.44269504f;
constexpr int kHeadDim = 128;
// Chunks of 16 bytes in a row of 16 bit elements.
constexpr int kRowChunks = kHeadDim / 8;
constexpr int kMaxThreads = 256;
constexpr int kWarpQueries = 16;

// Tensors q, o [batch * l, heads * d] and k, v [batch * s, heads * d].
struct Shape {
    int32_t batch, l, s, heads, d;
    bool vector;  // every head's row starts at a multiple of 16 bytes

    __host__ __device__ int64_t width() const { return int64_t{heads} * d; }
};

__host__ __device__ inline int32_t ceilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Where chunk `chunk` of row `row` of 16 bit elements lies in shared memory.
__device__ inline int rowChunk(int row, int chunk) { return swizzle<kRowChunks>(row, chunk); }

// One head's rows of a tensor.
template <class T>
struct Rows {
    T* data;
    int64_t stride;
    int32_t count, d;
    bool vector;

    __device__ Rows(T* tensor, int32_t rows, Shape const& shape, int32_t head, int32_t batch)
        : data(tensor + int64_t{batch} * rows * shape.width() + int64_t{head} * shape.d),
          stride(shape.width()),
          count(rows),
          d(shape.d),
          vector(shape.vector) {}

    __device__ T* at(int32_t row, int32_t channel) const { return data + row * stride + channel; }
};

__device__ inline uint16_t bitsAt(void const* element) { return *static_cast<uint16_t const*>(element); }

// Eight channels, the first a multiple of eight; zeros past the ends.
template <class T>
__device__ inline uint4 loadChunk(Rows<T const> const& rows, int32_t row, int32_t channel) {
    uint4 chunk = {0, 0, 0, 0};
    if (row >= rows.count || channel >= rows.d) return chunk;
    if (rows.vector) return *reinterpret_cast<uint4 const*>(rows.at(row, channel));
    uint32_t words[4] = {};
    for (int i = 0; i < 8; ++i) {
        if (channel + i < rows.d) words[i / 2] |= uint32_t{bitsAt(rows.at(row, channel + i))} << i % 2 * 16;
    }
    return {words[0], words[1], words[2], words[3]};
}

// Starts to copy `count` rows to shared memory; `copyWait` and a barrier end it.
template <class T>
__device__ inline void loadRows(uint4* shared, Rows<T const> const& rows, int32_t first, int count) {
    for (int i = threadIdx.x; i < count * kRowChunks; i += blockDim.x) {
        int const row = i / kRowChunks, chunk = i % kRowChunks;
        uint4* const to = shared + rowChunk(row, chunk);
        if (rows.vector) {
            bool const valid = first + row < rows.count && chunk * 8 < rows.d;
            copyAsync(to, valid ? rows.at(first + row, chunk * 8) : rows.data, valid);
        } else {
            *to = loadChunk(rows, first + row, chunk * 8);
        }
    }
}

// Starts to copy `count` chunks of 16 bytes to shared memory as they lie.
__device__ inline void loadChunks(uint4* shared, uint4 const* from, int count) {
    // Few turns: unrolling would only cost registers.
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += blockDim.x) copyAsync(shared + i, from + i);
}

// Starts to copy `count` packed rows of kChunks chunks to shared memory.
template <int kChunks>
__device__ inline void loadPacked(uint4* shared, void const* packed, int count) {
    uint4 const* const from = static_cast<uint4 const*>(packed);
    // Few turns: unrolling would only cost registers.
#pragma unroll 1
    for (int i = threadIdx.x; i < count * kChunks; i += blockDim.x) {
        copyAsync(shared + swizzle<kChunks>(i / kChunks, i % kChunks), from + i);
    }
}

// A warp's 16 queries as A fragments of depth 16.
using Queries = uint32_t[kHeadDim / 16][4];

// The first of the two channels that word `i` of fragment `step` holds; odd words are of row g + 8.
__device__ inline int fragmentChannel(int step, int i) { return step * 16 + i / 2 * 8 + threadIdx.x % 4 * 2; }

// The first query of this thread's warp.
__device__ inline int32_t warpQuery() {
    return (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * kWarpQueries;
}

template <class T>
__device__ inline void loadQueries(Queries& q, Rows<T const> const& rows, int32_t first) {
    first += threadIdx.x % 32 / 4;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int32_t const row = first + i % 2 * 8, channel = fragmentChannel(step, i);
            uint32_t word = 0;
            if (row < rows.count && channel < rows.d) {
                T const* const from = rows.at(row, channel);
                if (rows.vector) {
                    word = *reinterpret_cast<uint32_t const*>(from);
                } else {
                    word = bitsAt(from);
                    if (channel + 1 < rows.d) word |= uint32_t{bitsAt(from + 1)} << 16;
                }
            }
            q[step][i] = word;
        }
    }
}

// The key blocks that the query blocks keep: rows of `keep` numbers for each batch, head and query block, or
// all of them in order where `lut` is null.
struct Kept {
    int32_t const* lut;
    int32_t keep;
};

// Goes through the kept tiles of kTile keys of this thread block's queries; a block of keys is one tile or
// some. What is no block is left out.
template <int kTile>
struct KeyTiles {
    int32_t const* lut;
    int32_t keep, split, blocks, tiles;
    int32_t at = 0, part = 0;
    int32_t ahead = 0;  // entry `at` of the list, read one step early so that nothing waits for it

    // For query block `row` of `rows` of each head.
    __device__ KeyTiles(Kept const& kept, int32_t block, int32_t s, int32_t row, int32_t rows)
        : lut(kept.lut),
          keep(kept.keep),
          split(block / kTile),
          blocks(ceilDiv(s, block)),
          tiles(ceilDiv(s, kTile)) {
        if (lut != nullptr) {
            lut += ((int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * rows + row) * keep;
            if (keep > 0) ahead = lut[0];
        }
    }

    // How many there are, for all lanes of a warp; before the first, and where a block is one tile.
    __device__ int32_t count() const {
        if (lut == nullptr) return min(keep, blocks);
        int32_t count = 0;
        for (int32_t i = threadIdx.x % 32; i < keep; i += 32) count += lut[i] >= 0 && lut[i] < blocks;
        return __reduce_add_sync(~0u, count);
    }

    // The next tile, or -1.
    __device__ int32_t next() {
        while (at < keep) {
            int32_t const block = ahead, tile = block * split + part;
            bool const valid = block >= 0 && block < blocks;
            if (++part == split || !valid) {
                part = 0;
                ++at;
                if (at < keep) ahead = lut == nullptr ? at : lut[at];
            }
            if (valid && tile < tiles) return tile;
        }
        return -1;
    }
};

// Probabilities of 16 keys as a fragment of type T.
template <class T, int kTiles>
__device__ inline void packProbabilities(uint32_t (&to)[4], float const (&p)[kTiles][4], int step) {
    float const(&low)[4] = p[2 * step];
    float const(&high)[4] = p[2 * step + 1];
    to[0] = pack<T>(low[0], low[1]);
    to[1] = pack<T>(low[2], low[3]);
    to[2] = pack<T>(high[0], high[1]);
    to[3] = pack<T>(high[2], high[3]);
}

// Sums of two query rows, g and g + 8 of the warp's.
struct Softmax {
    // The least finite number, not infinity: the difference of two of them is no NaN.
    float max[2] = {-FLT_MAX, -FLT_MAX};
    float sum[2] = {0, 0};  // of this lane's columns
    float out[kHeadDim / 8][4] = {};

    // For other queries; `out` is theirs from the first products on that add nothing.
    __device__ void restart() {
        max[0] = max[1] = -FLT_MAX;
        sum[0] = sum[1] = 0;
    }

    // Turns scores of one tile into probabilities 2^(score * factor - max + offset) and says by what `out`
    // shrinks, as the denominator did. `round` gives a probability as the denominator sees it.
    template <int kTiles, class Round>
    __device__ void probabilities(
        float (&scores)[kTiles][4], float (&shrink)[2], float factor, float offset, Round round) {
        float tops[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            tops[r] = -FLT_MAX;
#pragma unroll
            for (int n = 0; n < kTiles; ++n) tops[r] = fmaxf(tops[r], fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        }
        probabilities(scores, tops, shrink, factor, offset, round);
    }

    // The same with the greatest scores of this lane's columns.
    template <int kTiles, class Round>
    __device__ void probabilities(float (&scores)[kTiles][4], float const (&tops)[2], float (&shrink)[2], float factor,
                                  float offset, Round round) {
        float shift[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = fmaxf(tops[r], __shfl_xor_sync(~0u, tops[r], 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            float const grown = fmaxf(max[r], top * factor);
            shrink[r] = exp2Approx(max[r] - grown);
            shift[r] = offset - grown;
            max[r] = grown;
            sum[r] *= shrink[r];
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float const p = round(exp2Approx(fmaf(scores[n][i], factor, shift[i / 2])));
                sum[i / 2] += p;
                scores[n][i] = p;
            }
        }
    }

    // The same, and shrinks `out`.
    template <int kTiles, class Round>
    __device__ void step(float (&scores)[kTiles][4], float factor, float offset, Round round) {
        float shrink[2];
        probabilities(scores, shrink, factor, offset, round);
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
        }
    }

    // out += probabilities times values of type T, rows of channels in shared memory.
    template <class T, int kTiles>
    __device__ void addValues(float const (&p)[kTiles][4], uint4 const* values) {
        int const lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < kTiles / 2; ++step) {
            uint32_t a[4];
            packProbabilities<T>(a, p, step);
#pragma unroll
            for (int n = 0; n < kHeadDim / 16; ++n) {
                uint32_t b[4];
                loadMatricesTransposed(b, values + rowChunk(step * 16 + lane % 16, n * 2 + lane / 16));
                mma<T>(out[2 * n], a, b[0], b[1]);
                mma<T>(out[2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // Divides by the denominator. Without a kept key block nothing is attended to.
    __device__ void normalise() { divide(sum); }

    // The same by denominators of this lane's columns.
    __device__ void divide(float const (&sums)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float total = sums[r] + __shfl_xor_sync(~0u, sums[r], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            float const rest = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                out[n][2 * r] *= rest;
                out[n][2 * r + 1] *= rest;
            }
        }
    }

    template <class T>
    __device__ void store(Rows<T> const& rows) const {
        int32_t const first = warpQuery() + threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int32_t const row = first + 8 * r, channel = n * 8 + threadIdx.x % 4 * 2;
                if (row >= rows.count || channel >= rows.d) continue;
                uint32_t const word = pack<T>(out[n][2 * r], out[n][2 * r + 1]);
                uint16_t* const to = reinterpret_cast<uint16_t*>(rows.at(row, channel));
                if (rows.vector) {
                    *reinterpret_cast<uint32_t*>(to) = word;
                } else {
                    to[0] = static_cast<uint16_t>(word);
                    if (channel + 1 < rows.d) to[1] = static_cast<uint16_t>(word >> 16);
                }
            }
        }
    }
};

// Gives the keys that a ragged last tile lacks the score `none`.
template <int kTiles, class Score>
__device__ inline void maskKeys(Score (&scores)[kTiles][4], int32_t left, Score none = -INFINITY) {
    if (left >= kTiles * 8) return;
    // Keeps it a branch: without it, all tiles would compare what only the last one has to.
    asm volatile("" ::: "memory");
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int const key = n * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (key >= left) scores[n][i] = none;
        }
    }
}

// Hands out parts of the workspace, the same ones to prepare, which has no memory yet, and to launch.
class Workspace {
  public:
    explicit Workspace(void* base = nullptr) : base_(static_cast<uint8_t*>(base)) {}

    template <class U>
    U* take(int64_t count) {
        size_t const at = used_;
        used_ += (static_cast<size_t>(count) * sizeof(U) + 255) / 256 * 256;
        return base_ == nullptr ? nullptr : reinterpret_cast<U*>(base_ + at);
    }

    size_t used() const { return used_; }

  private:
    uint8_t* base_;
    size_t used_ = 0;
};

// The shape of a call whose first three inputs are q, k and v.
template <class Attrs>
Shape shapeOf(Call const& call, Attrs const& attrs) {
    Tensor const &q = call.in[0], &k = call.in[1];
    auto const part = [](int64_t n, int32_t parts) { return static_cast<int32_t>(n / parts); };
    Shape shape{attrs.batch, part(q.dim[0], attrs.batch), part(k.dim[0], attrs.batch),
                attrs.heads, part(q.dim[1], attrs.heads), false};
    auto const aligned = [](Tensor const& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0; };
    shape.vector =
        shape.d % 8 == 0 && aligned(q) && aligned(k) && aligned(call.in[2]) && aligned(call.out[0]);
    return shape;
}

// Whether the attention kernels take the call at all.
template <class Attrs>
Status checkShape(Call const& call, Attrs const& attrs) {
    Tensor const &q = call.in[0], &k = call.in[1];
    if (q.type != DType::kBF16 && q.type != DType::kF16) return {"q, k and v must be bf16 or f16"};
    int32_t const batch = attrs.batch, heads = attrs.heads;
    int64_t const width = q.dim[1];
    if (heads < 1 || heads > 65535 || width % heads != 0) {
        return {"heads must be 1 to 65535 and divide the channels"};
    }
    if (width < heads || width > int64_t{heads} * kHeadDim) return {"a head must have 1 to 128 channels"};
    // Grids are 65535 high and deep.
    if (batch < 1 || batch > 32767) return {"the batch must be 1 to 32767"};
    for (Tensor const* x : {&q, &k}) {
        constexpr int64_t kMaxTokens = int64_t{1} << 23;
        if (x->dim[0] % batch != 0) return {"the batch must divide the rows of q and of k"};
        if (x->dim[0] < batch || x->dim[0] / batch > kMaxTokens) return {"there must be 1 to 2^23 tokens"};
    }
    return {};
}

// Whether they take the blocks of queries and keys.
inline Status checkBlocks(int32_t blockQ, int32_t blockK) {
    auto const taken = [](int32_t block) { return block == 64 || block == 128; };
    return taken(blockQ) && taken(blockK) ? Status{} : Status{"block_q and block_k must be 64 or 128"};
}

// Calls `f` with a value of the activation type.
template <class F>
Status byType(DType type, F&& f) {
    return type == DType::kBF16 ? f(__nv_bfloat16{}) : f(__half{});
}

}  // namespace turbo::attn
