// The linear attention branch of SLA (arXiv:2509.24006): o += proj_l(phi(q) (phi(k)^T v) / (1e-5 + phi(q) .
// sum phi(k))) with phi = softmax over the channels of a head.
//
// The projection is linear and goes into the d x d sums once. These are scaled by d / s, the size of what
// they average, to fit f16.
#pragma once

#include "attn_keys.cuh"

namespace turbo::attn {

constexpr float kLinearEps = 1e-5f;
constexpr int kFoldRows = 8;
// Segments whose sums are on their way at a time.
constexpr int kFoldAhead = 8;
// Floats from row to row of a matrix in shared memory whose rows' fours eight lanes read at a time, each another row.
constexpr int kFoldPitch = kHeadDim + 4;
constexpr size_t kFoldShared = kHeadDim * kFoldPitch * sizeof(float);
static_assert(kFoldShared + kFoldRows * kHeadDim * sizeof(float) <= 99 * 1024);

// Channels of a tile of a state as wgmma reads it.
constexpr int kStateTile = 32;

// Where the element of a feature and a channel lies in a state: in rows of channels, or in tiles of rows of kStateTile
// channels, swizzled as wgmma wants them in shared memory.
__device__ inline int stateAt(int feature, int channel, bool tiled) {
    if (!tiled) return feature * kHeadDim + channel;
    int const chunk = swizzle<kStateTile / 8>(feature, channel % kStateTile / 8);
    return channel / kStateTile * (kHeadDim * kStateTile) + chunk * 8 + channel % 8;
}

// What the queries of all heads read: proj_w (phi(k)^T v) d / s, a state of each head, elements where `stateAt` says,
// and sum phi(k) as [batch, heads, feature], padded with zeros.
template <class T>
struct Linear {
    T const* projected;
    float const* featureSums;
    float const* bias;
};

// Adds the segments and projects kFoldRows features of one head: a thread adds four channels of one feature, then
// projects half of the features to one channel. The last block of threads of a head adds phi alone.
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    foldProjection(Shape shape, int32_t segments, SegmentSums from, float const* weight, T* projected,
                   float* featureSums, bool tiled) {
    static_assert(kFoldRows * kHeadDim == 4 * kMaxThreads);
    extern __shared__ float weights[];
    __shared__ float4 state[kFoldRows][kHeadDim / 4];
    followKernelAhead();
    int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    int const channel = threadIdx.x % kHeadDim, part = threadIdx.x / kHeadDim, firstRow = blockIdx.x * kFoldRows;
    if (firstRow == kHeadDim) {
        if (part != 0) return;
        float sum = 0.0f;
#pragma unroll 8
        for (int32_t i = 0; i < segments; ++i) sum += from.sums[(head * segments + i) * kHeadDim + channel];
        featureSums[head * kHeadDim + channel] = sum;
        return;
    }
#pragma unroll 8
    for (int row = part; row < kHeadDim; row += kMaxThreads / kHeadDim) {
        bool const exists = row < shape.d && channel < shape.d;
        copyAsync(weights + row * kFoldPitch + channel, exists ? weight + row * shape.d + channel : weight, exists);
    }
    float4 sum = {};
    auto const* const states =
        reinterpret_cast<float4 const*>(from.states + head * segments * kStateSize + firstRow * kHeadDim) + threadIdx.x;
    for (int32_t i = 0; i < segments; i += kFoldAhead) {
        float4 x[kFoldAhead] = {};
#pragma unroll
        for (int j = 0; j < kFoldAhead; ++j) {
            if (i + j < segments) x[j] = states[int64_t{i + j} * (kStateSize / 4)];
        }
#pragma unroll
        for (float4 const& y : x) sum = {sum.x + y.x, sum.y + y.y, sum.z + y.z, sum.w + y.w};
    }
    state[threadIdx.x / (kHeadDim / 4)][threadIdx.x % (kHeadDim / 4)] = sum;
    copyWait();
    __syncthreads();
    constexpr int kRows = kFoldRows * kHeadDim / kMaxThreads;
    auto const* const mine = reinterpret_cast<float4 const*>(weights + channel * kFoldPitch);
    float total[kRows] = {};
#pragma unroll 4
    for (int j = 0; j < kHeadDim / 4; ++j) {
        float4 const w = mine[j];
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
            float4 const x = state[part * kRows + row][j];
            total[row] = fmaf(x.w, w.w, fmaf(x.z, w.z, fmaf(x.y, w.y, fmaf(x.x, w.x, total[row]))));
        }
    }
    float const size = static_cast<float>(shape.d) / static_cast<float>(shape.s);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
        int const feature = firstRow + part * kRows + row;
        projected[head * kStateSize + stateAt(feature, channel, tiled)] = T(total[row] * size);
    }
}

// Makes of a warp's queries phi before its division, and the factors of its products with a state. `featureSums` has
// sums of phi(k), two features each.
template <class T>
__device__ inline void toFeatures(Queries& q, float (&factor)[2], float2 const* featureSums, Shape const& shape) {
    if (shape.d < kHeadDim) {
#pragma unroll
        for (int i = 0; i < kHeadDim / 4; ++i) {
            lowerChannels(q[i / 4][i % 4], fragmentChannel(i / 4, i % 4), shape.d, kLowest<T>);
        }
    }
    // Rows alternate from word to word. The maxima are made of words: unpacked ones would take twice the registers.
    float top[2], total[2] = {}, dot[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        uint32_t tops = q[0][r];
#pragma unroll
        for (int i = 1; i < kHeadDim / 8; ++i) tops = largerPair<T>(tops, q[i / 2][i % 2 * 2 + r]);
        top[r] = fmaxf(unpack<T>(tops).x, unpack<T>(tops).y);
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float2 const pair = unpack<T>(q[step][i]), sums = featureSums[fragmentChannel(step, i) / 2];
            float2 const x = {exp2Approx((pair.x - top[i % 2]) * kLog2e), exp2Approx((pair.y - top[i % 2]) * kLog2e)};
            total[i % 2] += x.x;
            total[i % 2] += x.y;
            dot[i % 2] = fmaf(x.y, sums.y, fmaf(x.x, sums.x, dot[i % 2]));
            q[step][i] = pack<T>(x.x, x.y);
        }
    }
    float const size = static_cast<float>(shape.s) / static_cast<float>(shape.d);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        dot[r] += __shfl_xor_sync(~0u, dot[r], 1);
        dot[r] += __shfl_xor_sync(~0u, dot[r], 2);
        factor[r] = size / (kLinearEps * total[r] + dot[r]);
    }
}

// Adds the branch to the outputs of a warp's queries, which become their features. `shared` is free for kHeadDim rows.
template <class T>
__device__ inline void addLinear(
    Softmax& softmax, Queries& q, Linear<T> const& linear, Shape const& shape, uint4* shared) {
    int const lane = threadIdx.x % 32;
    int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    __syncthreads();
    loadPacked<kRowChunks>(shared, linear.projected + head * kStateSize, kHeadDim);
    float factor[2];
    auto const* const featureSums = reinterpret_cast<float2 const*>(linear.featureSums + head * kHeadDim);
    toFeatures<T>(q, factor, featureSums, shape);
    copyWait();
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
        float sum[2][4] = {};
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            uint32_t b[4];
            loadMatricesTransposed(b, shared + rowChunk(step * 16 + lane % 16, n * 2 + lane / 16));
            mma<T>(sum[0], q[step], b[0], b[1]);
            mma<T>(sum[1], q[step], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int const channel = n * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
            float const bias = channel < shape.d ? linear.bias[channel] : 0.0f;
            softmax.out[2 * n + i / 4][i % 4] += fmaf(sum[i / 4][i % 4], factor[i % 4 / 2], bias);
        }
    }
}

// The branch's part of the workspace; nothing without the branch.
template <class T>
struct LinearBuffers {
    int32_t segments = 0;
    SegmentSums sums{};
    float* featureSums = nullptr;
    T* projected = nullptr;

    LinearBuffers() = default;
    LinearBuffers(Workspace& workspace, Shape const& shape) : segments(ceilDiv(shape.s, kSegment)) {
        int64_t const heads = int64_t{shape.batch} * shape.heads;
        sums.states = workspace.take<float>(heads * segments * kStateSize);
        sums.sums = workspace.take<float>(heads * segments * kHeadDim);
        featureSums = workspace.take<float>(heads * kHeadDim);
        projected = workspace.take<T>(heads * kStateSize);
    }
};

// Enqueues what comes between the pass over the keys and the queries; `linear` gets what these read, its states `tiled`
// where kernels for sm_90a attend. proj_w is input `weight`, its bias the next.
template <class T>
Status foldLinear(LinearBuffers<T> const& buffers, Shape const& shape, Call const& call, int32_t weight, bool tiled,
                  Queue queue, Linear<T>* linear) {
    *linear = {buffers.projected, buffers.featureSums, static_cast<float const*>(call.in[weight + 1].data)};
    dim3 const grid(kHeadDim / kFoldRows + 1, shape.heads, shape.batch);
    return enqueue(foldProjection<T>, grid, kMaxThreads, kFoldShared, queue, shape, buffers.segments, buffers.sums,
                   static_cast<float const*>(call.in[weight].data), buffers.projected, buffers.featureSums, tiled);
}

}  // namespace turbo::attn
