// SageAttention (SageAttention2, arXiv:2411.10958, as TurboDiffusion runs it): INT8 queries and smoothed
// keys, probabilities and values in E4M3 or f16, dense or over kept key blocks. The contract is in
// `plugins/ops/common/attn.rs`; the softmax goes by whole key blocks because probabilities are rounded
// relative to the maximum so far.
#pragma once

#include "attn_sage_hopper.cuh"
#include "attn_sage_pack.cuh"

namespace turbo::attn {

// Chunks of 16 bytes of one stage in shared memory.
template <int kBlock, bool kFp8>
constexpr int kSageValues = kBlock * kHeadDim / 16 * (kFp8 ? 1 : 2);
template <int kBlock>
constexpr int kSageKeys = kBlock * kHeadDim / 16;
template <int kBlock, bool kFp8>
constexpr size_t kSageShared = 2 * (kSageKeys<kBlock> + kSageValues<kBlock, kFp8>) * sizeof(uint4);
static_assert(kSageShared<64, true> >= kStateSize * sizeof(uint16_t) && kSageShared<128, false> <= 99 * 1024);

template <class T, int kBlock, bool kFp8, bool kLinear>
__global__ void __launch_bounds__(kMaxThreads)
    attendSage(Shape shape, T const* q, SageKeys packed, T* o, Kept kept, Linear<T> linear) {
    constexpr int kKeys = kSageKeys<kBlock>, kValues = kSageValues<kBlock, kFp8>;
    constexpr int kTiles = kBlock / 8, kKeyChunks = kHeadDim / 16, kValueChunks = kBlock / 16;
    extern __shared__ uint4 shared[];
    int const lane = threadIdx.x % 32;
    Rows<T const> const queryRows(q, shape.l, shape, blockIdx.y, blockIdx.z);
    int64_t const firstBlock = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * ceilDiv(shape.s, kBlock);
    KeyTiles<kBlock> tiles(kept, kBlock, shape.s, blockIdx.x, gridDim.x);
    uint4* stage = shared;
    auto const load = [&](uint4* to, int32_t tile) {
        loadChunks(to, packed.keys + (firstBlock + tile) * kKeys, kKeys);
        loadChunks(to + kKeys, packed.values + (firstBlock + tile) * kValues, kValues);
    };
    int32_t tile = tiles.next();
    if (tile >= 0) load(stage, tile);

    // Fragments of depth 32 from two of depth 16, channels in slots.
    uint32_t queries[kHeadDim / 32][4];
    float unit;
    {
        Queries whole;
        loadQueries(whole, queryRows, warpQuery());
        float const scale = int8Scale(blockMax(greatest<T>(whole)));
        quantizeQueries<T>(queries, whole, scale);
        // Scores in base 2.
        unit = kLog2e * rsqrtf(static_cast<float>(shape.d)) * scale;
    }

    Softmax softmax;
    while (tile >= 0) {
        float const factor = unit * packed.blocks[firstBlock + tile].scale;
        copyWait();
        // Everybody's copies are there, and everybody is done with the other stage.
        __syncthreads();
        uint4 const* const keys = stage;
        uint4 const* const values = keys + kKeys;
        stage = shared + (stage == shared ? kKeys + kValues : 0);
        int32_t const next = tiles.next();
        if (next >= 0) load(stage, next);
        int32_t products[kTiles][4] = {};
#pragma unroll
        for (int step = 0; step < kHeadDim / 32; ++step) {
#pragma unroll
            for (int n = 0; n < kTiles / 2; ++n) {
                uint32_t b[4];
                int const key = n * 16 + lane % 8 + lane / 16 * 8;
                loadMatrices(b, keys + swizzle<kKeyChunks>(key, step * 2 + lane / 8 % 2));
                mmaInt8(products[2 * n], queries[step], b[0], b[1]);
                mmaInt8(products[2 * n + 1], queries[step], b[2], b[3]);
            }
        }
        float scores[kTiles][4];
#pragma unroll
        for (int i = 0; i < kTiles * 4; ++i) scores[i / 4][i % 4] = __int2float_rn(products[i / 4][i % 4]);
        maskKeys(scores, shape.s - tile * kBlock);
        if constexpr (kFp8) {
            softmax.step(scores, factor, kFp8Offset, [](float p) { return p; });
#pragma unroll
            for (int step = 0; step < kBlock / 32; ++step) {
                uint32_t a[4];
                packProbabilitiesE4m3(a, scores, step);
#pragma unroll
                for (int n = 0; n < kHeadDim / 16; ++n) {
                    uint32_t b[4];
                    int const channel = n * 16 + lane % 8 + lane / 16 * 8;
                    loadMatrices(b, values + swizzle<kValueChunks>(channel, step * 2 + lane / 8 % 2));
                    mmaE4m3(softmax.out[2 * n], a, b[0], b[1]);
                    mmaE4m3(softmax.out[2 * n + 1], a, b[2], b[3]);
                }
            }
        } else {
            softmax.step(scores, factor, 0.0f, [](float p) { return __half2float(__float2half_rn(p)); });
            softmax.template addValues<__half>(scores, values);
        }
        tile = next;
    }
    softmax.normalise();
    if constexpr (kFp8) scaleValues(softmax, packed, shape);
    if constexpr (kLinear) {
        Queries whole;
        loadQueries(whole, queryRows, warpQuery());
        addLinear(softmax, whole, linear, shape, shared);
    }
    softmax.store(Rows<T>(o, shape.l, shape, blockIdx.y, blockIdx.z));
}

// The part of the workspace for keys and values.
struct SageBuffers {
    int32_t chunks, blocks;
    int64_t width;
    float *partials, *stats;
    KeyBlock* keyBlocks;
    uint4 *keys, *values;

    SageBuffers(Workspace& workspace, Shape const& shape, int32_t block, bool fp8)
        : chunks(ceilDiv(shape.s, kStatRows)), blocks(ceilDiv(shape.s, block)), width(shape.width()) {
        int64_t const all = int64_t{shape.batch} * shape.heads * blocks;
        partials = workspace.take<float>(2 * shape.batch * chunks * width);
        stats = workspace.take<float>(2 * shape.batch * width);
        keyBlocks = workspace.take<KeyBlock>(all);
        keys = workspace.take<uint4>(all * block * kHeadDim / 16);
        values = workspace.take<uint4>(all * block * kHeadDim / 16 * (fp8 ? 1 : 2));
    }
};

// Enqueues SageAttention with key blocks of kBlock; sums of keys are input `keySums`, and the linear branch takes proj_w
// from input `weight`.
template <bool kLinear, int kBlock, bool kFp8, class T>
Status launchSageAs(SageBuffers const& buffers, LinearBuffers<T> const& branch, Shape const& shape, Call const& call,
                    int32_t keySums, int32_t weight, Kept const& kept, int32_t blockQ, cudaStream_t stream) {
    hopper::Device device;
    cudaError_t const error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    bool const onHopper = kFp8 && device.isHopper;
    Queue const queue = {stream, onHopper};
    auto const* const q = static_cast<T const*>(call.in[0].data);
    auto const* const sums = static_cast<float const*>(call.in[keySums].data);
    auto const* const v = static_cast<T const*>(call.in[2].data);
    auto const depth = static_cast<uint32_t>(kFp8 ? 2 * shape.batch : shape.batch);
    float const* const valueMax = buffers.stats + shape.batch * buffers.width;
    auto const columns = [&](int64_t each) {
        return static_cast<uint32_t>((buffers.width + each - 1) / each);
    };
    dim3 const partials(columns(shape.vector ? 256 : 32), buffers.chunks, depth);
    Status status = enqueue(shape.vector ? channelPartials<T, 8> : channelPartials<T, 1>, partials,
                            dim3(32, kStatGroups), 0, queue, shape, sums, v, buffers.partials);
    if (!status.ok()) return status;
    status = enqueue(channelStats, dim3(columns(32), depth), dim3(32, kStatGroups), 0, queue, shape,
                     buffers.chunks, buffers.partials, buffers.stats);
    if (!status.ok()) return status;
    using Packer = SagePacker<T, kBlock, kFp8>;
    status = enqueuePass<T, Packer, kLinear>(
        shape, call, {buffers.stats, valueMax, buffers.keys, buffers.keyBlocks, buffers.values}, branch.sums, queue);
    if (!status.ok()) return status;
    Linear<T> linear{};
    if constexpr (kLinear) {
        status = foldLinear(branch, shape, call, weight, onHopper, queue, &linear);
        if (!status.ok()) return status;
    }
    SageKeys const packed{buffers.keys, buffers.keyBlocks, buffers.values, valueMax};
    auto* const o = static_cast<T*>(call.out[0].data);
    if constexpr (kFp8) {
        if (onHopper) return wgmma::launch<T, kBlock, kLinear>(shape, q, packed, o, kept, blockQ, linear, queue);
    }
    dim3 const grid(ceilDiv(shape.l, blockQ), shape.heads, shape.batch);
    return enqueue(attendSage<T, kBlock, kFp8, kLinear>, grid, blockQ / kWarpQueries * 32,
                   kSageShared<kBlock, kFp8>, {stream, false}, shape, q, packed, o, kept, linear);
}

// The same with the key block and the type of values as attributes say.
template <bool kLinear, class T>
Status launchSage(SageBuffers const& buffers, LinearBuffers<T> const& branch, Shape const& shape, Call const& call,
                  int32_t keySums, int32_t weight, Kept const& kept, int32_t blockQ, int32_t blockK, bool fp8,
                  cudaStream_t stream) {
    auto const small = fp8 ? launchSageAs<kLinear, 64, true, T> : launchSageAs<kLinear, 64, false, T>;
    auto const large = fp8 ? launchSageAs<kLinear, 128, true, T> : launchSageAs<kLinear, 128, false, T>;
    auto const as = blockK == 64 ? small : large;
    return as(buffers, branch, shape, call, keySums, weight, kept, blockQ, stream);
}

}  // namespace turbo::attn
