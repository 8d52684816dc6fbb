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

// What the queries of all heads read: proj_w (phi(k)^T v) d / s as [batch, heads, feature, channel] and sum
// phi(k) as [batch, heads, feature], padded with zeros.
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
                   float* featureSums) {
    static_assert(kFoldRows * kHeadDim == 4 * kMaxThreads);
    extern __shared__ float weights[];
    __shared__ float4 state[kFoldRows][kHeadDim / 4];
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
        projected[head * kStateSize + (firstRow + part * kRows + row) * kHeadDim + channel] = T(total[row] * size);
    }
}

// Adds the branch to the outputs of a warp's queries. `shared` is free for kHeadDim rows.
template <class T>
__device__ inline void addLinear(Softmax& softmax, Queries const& q, Linear<T> const& linear,
                                 Shape const& shape, uint4* shared) {
    int const lane = threadIdx.x % 32;
    int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    __syncthreads();
    loadPacked<kRowChunks>(shared, linear.projected + head * kStateSize, kHeadDim);
    auto const exists = [&](int step, int i) { return fragmentChannel(step, i / 2) + i % 2 < shape.d; };
    // Elements of a fragment: word i / 2, half i % 2; rows alternate from word to word.
    auto const element = [&](int step, int i) {
        float2 const pair = unpack<T>(q[step][i / 2]);
        return i % 2 == 0 ? pair.x : pair.y;
    };
    float top[2] = {-FLT_MAX, -FLT_MAX}, total[2] = {}, dot[2] = {}, factor[2];
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (exists(step, i)) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], element(step, i));
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    }
    // phi before its division by `total`, which waits for the end.
    Queries phi;
    float const* const sums = linear.featureSums + head * kHeadDim;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float x[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float const above = element(step, 2 * i + j) - top[i % 2];
                x[j] = exists(step, 2 * i + j) ? exp2Approx(above * kLog2e) : 0.0f;
                total[i % 2] += x[j];
                dot[i % 2] = fmaf(x[j], sums[fragmentChannel(step, i) + j], dot[i % 2]);
            }
            phi[step][i] = pack<T>(x[0], x[1]);
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
    copyWait();
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
        float sum[2][4] = {};
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            uint32_t b[4];
            loadMatricesTransposed(b, shared + rowChunk(step * 16 + lane % 16, n * 2 + lane / 16));
            mma<T>(sum[0], phi[step], b[0], b[1]);
            mma<T>(sum[1], phi[step], b[2], b[3]);
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

// Enqueues what comes between the pass over the keys and the queries; `linear` gets what these read. proj_w is input
// `weight`, its bias the next.
template <class T>
Status foldLinear(LinearBuffers<T> const& buffers, Shape const& shape, Call const& call, int32_t weight,
                  cudaStream_t stream, Linear<T>* linear) {
    *linear = {buffers.projected, buffers.featureSums, static_cast<float const*>(call.in[weight + 1].data)};
    dim3 const grid(kHeadDim / kFoldRows + 1, shape.heads, shape.batch);
    return enqueue(foldProjection<T>, grid, kMaxThreads, kFoldShared, stream, shape, buffers.segments, buffers.sums,
                   static_cast<float const*>(call.in[weight].data), buffers.projected, buffers.featureSums);
}

}  // namespace turbo::attn
