// The linear attention branch of SLA (arXiv:2509.24006): o += proj_l(phi(q) (phi(k)^T v) / (1e-5 + phi(q) .
// sum phi(k))) with phi = softmax over the channels of a head.
//
// Sums over keys are made segment by segment and added in order, so results do not depend on the schedule.
// The projection is linear and goes into the d x d sums once. These are scaled by d / s, the size of what
// they average, to fit f16.
#pragma once

#include "attn.cuh"

namespace turbo::attn {

constexpr float kLinearEps = 1e-5f;
constexpr float kLog2e = 1.44269504f;
constexpr int kSegment = 2048;
constexpr int kStateTile = 64;
constexpr int kStateSize = kHeadDim * kHeadDim;
constexpr int kFoldRows = 16;

// What the queries of all heads read: proj_w (phi(k)^T v) d / s as [batch, heads, feature, channel] and sum
// phi(k) as [batch, heads, feature], padded with zeros.
template <class T>
struct Linear {
    T const* projected;
    float const* featureSums;
    float const* bias;
};

// phi(k)^T v and sum phi(k) of one segment of keys: states [batch, heads, segments, feature, channel] and
// sums [batch, heads, segments, feature]. A warp makes 16 features.
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    sumStates(Shape shape, T const* k, T const* v, float* states, float* sums) {
    __shared__ uint4 phi[kStateTile * kRowChunks];
    __shared__ uint4 values[kStateTile * kRowChunks];
    int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Rows<T const> const keyRows(k, shape.s, shape, blockIdx.y, blockIdx.z);
    Rows<T const> const valueRows(v, shape.s, shape, blockIdx.y, blockIdx.z);
    uint32_t const ones = pack<T>(1.0f, 1.0f);
    float state[kHeadDim / 8][4] = {};
    float sum[4] = {};
    int32_t const first = blockIdx.x * kSegment;
    int32_t const end = min(first + kSegment, shape.s);
    for (int32_t tile = first; tile < end; tile += kStateTile) {
        loadRows(values, valueRows, tile, kStateTile);
        // Four lanes share a row, eight channels in turn.
        int const row = threadIdx.x / 4, part = threadIdx.x % 4;
        float x[32];
        float top = -FLT_MAX, total = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) loadFloats(x + 8 * j, keyRows, tile + row, (4 * j + part) * 8);
        auto const exists = [&](int i) { return (4 * (i / 8) + part) * 8 + i % 8 < shape.d; };
#pragma unroll
        for (int i = 0; i < 32; ++i) top = exists(i) ? fmaxf(top, x[i]) : top;
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            x[i] = exists(i) ? exp2Approx((x[i] - top) * kLog2e) : 0.0f;
            total += x[i];
        }
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        float const rest = tile + row < shape.s ? 1.0f / total : 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                words[i] = pack<T>(x[8 * j + 2 * i] * rest, x[8 * j + 2 * i + 1] * rest);
            }
            phi[rowChunk(row, 4 * j + part)] = {words[0], words[1], words[2], words[3]};
        }
        copyWait();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < kStateTile / 16; ++step) {
            uint32_t a[4];
            int const key = step * 16 + lane % 8 + lane / 16 * 8;
            loadMatricesTransposed(a, phi + rowChunk(key, warp * 2 + lane / 8 % 2));
            mma<T>(sum, a, ones, ones);
#pragma unroll
            for (int n = 0; n < kHeadDim / 16; ++n) {
                uint32_t b[4];
                loadMatricesTransposed(b, values + rowChunk(step * 16 + lane % 16, n * 2 + lane / 16));
                mma<T>(state[2 * n], a, b[0], b[1]);
                mma<T>(state[2 * n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    int64_t const segment = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int const feature = warp * 16 + lane / 4;
    float* const to = states + segment * kStateSize + feature * kHeadDim + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) = {state[n][0], state[n][1]};
        *reinterpret_cast<float2*>(to + 8 * kHeadDim + n * 8) = {state[n][2], state[n][3]};
    }
    if (lane % 4 == 0) {
        sums[segment * kHeadDim + feature] = sum[0];
        sums[segment * kHeadDim + feature + 8] = sum[2];
    }
}

// Adds the segments and projects: kFoldRows features of one head, a thread for each output channel.
template <class T>
__global__ void __launch_bounds__(kHeadDim)
    foldProjection(Shape shape, int32_t segments, float const* states, float const* sums, float const* weight,
                   T* projected, float* featureSums) {
    __shared__ float state[kFoldRows][kHeadDim];
    int64_t const head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    int const channel = threadIdx.x, firstRow = blockIdx.x * kFoldRows;
    states += head * segments * kStateSize + firstRow * kHeadDim + channel;
    float total[kFoldRows] = {};
    for (int32_t i = 0; i < segments; ++i) {
#pragma unroll
        for (int row = 0; row < kFoldRows; ++row) {
            total[row] += states[int64_t{i} * kStateSize + row * kHeadDim];
        }
    }
#pragma unroll
    for (int row = 0; row < kFoldRows; ++row) {
        state[row][channel] = total[row];
        total[row] = 0.0f;
    }
    __syncthreads();
    if (channel < shape.d) {
        for (int j = 0; j < shape.d; ++j) {
            float const w = weight[channel * shape.d + j];
#pragma unroll
            for (int row = 0; row < kFoldRows; ++row) total[row] = fmaf(state[row][j], w, total[row]);
        }
    }
    float const size = static_cast<float>(shape.d) / static_cast<float>(shape.s);
#pragma unroll
    for (int row = 0; row < kFoldRows; ++row) {
        projected[head * kStateSize + (firstRow + row) * kHeadDim + channel] = T(total[row] * size);
    }
    if (blockIdx.x != 0) return;
    float sum = 0.0f;
    for (int32_t i = 0; i < segments; ++i) sum += sums[(head * segments + i) * kHeadDim + channel];
    featureSums[head * kHeadDim + channel] = sum;
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

// The branch's part of the workspace.
template <class T>
struct LinearBuffers {
    int32_t segments;
    float *states, *sums, *featureSums;
    T* projected;

    LinearBuffers(Workspace& workspace, Shape const& shape) : segments(ceilDiv(shape.s, kSegment)) {
        int64_t const heads = int64_t{shape.batch} * shape.heads;
        states = workspace.take<float>(heads * segments * kStateSize);
        sums = workspace.take<float>(heads * segments * kHeadDim);
        featureSums = workspace.take<float>(heads * kHeadDim);
        projected = workspace.take<T>(heads * kStateSize);
    }
};

// Enqueues what comes before the queries; `linear` gets what they read.
template <class T>
Status prepareLinear(LinearBuffers<T> const& buffers, Shape const& shape, Call const& call, int32_t weight,
                     cudaStream_t stream, Linear<T>* linear) {
    auto const heads = static_cast<uint32_t>(shape.heads), batch = static_cast<uint32_t>(shape.batch);
    *linear = {buffers.projected, buffers.featureSums, static_cast<float const*>(call.in[weight + 1].data)};
    auto const* const k = static_cast<T const*>(call.in[1].data);
    auto const* const v = static_cast<T const*>(call.in[2].data);
    Status const status = enqueue(sumStates<T>, dim3(buffers.segments, heads, batch), kMaxThreads, 0, stream,
                                  shape, k, v, buffers.states, buffers.sums);
    if (!status.ok()) return status;
    return enqueue(foldProjection<T>, dim3(kHeadDim / kFoldRows, heads, batch), kHeadDim, 0, stream, shape,
                   buffers.segments, buffers.states, buffers.sums,
                   static_cast<float const*>(call.in[weight].data), buffers.projected, buffers.featureSums);
}

}  // namespace turbo::attn
