// The norm and its quantisation in one pass over memory, Hopper: the CTAs of a cluster share 128 rows and tell one
// another the largest magnitudes of their blocks. A warp has 256 columns of its CTA's rows in registers; its next ones
// are on their way to shared memory meanwhile, so memory never waits for arithmetic.
#pragma once

#include <algorithm>

#include "../common/cuda/attn_mma.cuh"
#include "../common/cuda/hopper.cuh"
#include "../common/cuda/mma_s8.cuh"
#include "../common/cuda/norm.cuh"
#include "../common/cuda/quant.cuh"
#include "../common/cuda/shared.cuh"

namespace turbo::norm_quantize {

constexpr int32_t kCtas = 8;              // of a cluster
constexpr int32_t kRows = kBlock / kCtas; // of a CTA
constexpr int32_t kBlocks = 2;            // of 128 columns, of a warp
constexpr int32_t kColumns = kBlocks * kBlock;
constexpr int32_t kLanes = kBlock / kWarp; // a lane's columns of a block
constexpr int32_t kWords = kLanes / 2;
constexpr int32_t kWarps = 20;
constexpr int32_t kWidest = kWarps * kColumns;
// Rows, and 11 KiB beside them.
static_assert(kRows * kWidest * sizeof(uint16_t) + 11 * 1024 <= 227 * 1024);

// The sum of elements and that of their squared differences from their mean; of RMS, 0 and the sum of their squares.
struct Sums {
    float sum, squares;
};

// What normalises a row: x * factor + offset.
struct Line {
    float factor, offset;
};

#if TURBO_HOPPER

// Writes a word to another CTA's shared memory, at the place of this CTA's `shared`; its bytes count at that CTA's
// barrier. The stores before it need not have ended, as they must before a barrier of the cluster.
__device__ __forceinline__ void storeTo(int32_t cta, uint32_t shared, uint32_t barrier, uint32_t word) {
    asm volatile(
        "{\n"
        ".reg .b32 address, bytes;\n"
        "mapa.shared::cluster.u32 address, %0, %2;\n"
        "mapa.shared::cluster.u32 bytes, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [address], %3, [bytes];\n"
        "}" ::"r"(shared),
        "r"(barrier), "r"(cta), "r"(word)
        : "memory");
}

// The sums of two sets of `count` elements each (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
// for computing sample variances").
__device__ __forceinline__ Sums merge(Sums a, Sums b, float count) {
    float const apart = a.sum - b.sum;
    return {a.sum + b.sum, fmaf(apart * apart, 0.5f / count, a.squares + b.squares)};
}

// Of `kCount` rows of which every lane has two blocks' words: the sums, over as many lanes, of row lane % kCount.
template <class T, int32_t kCount>
__device__ __forceinline__ Sums reduceRows(uint32_t const (*rows)[kBlocks * kWords], bool layer) {
    constexpr int32_t kHeld = kBlocks * kLanes;
    if constexpr (kCount == 1) {
        float x[kHeld], sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < kHeld / 2; ++i) {
            float2 const pair = attn::unpack<T>(rows[0][i]);
            x[2 * i] = pair.x;
            x[2 * i + 1] = pair.y;
            sum += pair.x + pair.y;
        }
        if (!layer) sum = 0.0f;
        float const mean = sum * (1.0f / kHeld);
#pragma unroll
        for (int32_t i = 0; i < kHeld; ++i) squares = fmaf(x[i] - mean, x[i] - mean, squares);
        return {sum, squares};
    } else {
        // Lanes whose numbers differ in one bit exchange the halves of the rows that they do not keep.
        constexpr int32_t kHalf = kCount / 2;
        Sums const low = reduceRows<T, kHalf>(rows, layer), high = reduceRows<T, kHalf>(rows + kHalf, layer);
        bool const upper = threadIdx.x & kHalf;
        Sums const kept = upper ? high : low, given = upper ? low : high;
        Sums const got = {__shfl_xor_sync(kAllLanes, given.sum, kHalf),
                          __shfl_xor_sync(kAllLanes, given.squares, kHalf)};
        return merge(kept, got, kHeld * kHalf);
    }
}

#endif

// Arguments as kernel.cu has them. A cluster takes the tiles of 128 rows in turn with the others. Rows past the end are
// the last one again: they change no maximum, and what they write is the same.
template <Format kFormat, class T, class Arguments>
__global__ void __launch_bounds__(kWarps * kWarp) kernel(Arguments a) {
#if TURBO_HOPPER
    extern __shared__ uint4 memory[];  // [warps][kRows][kColumns] of T
    // Two, since other warps may be a tile ahead.
    __shared__ Sums partials[2][kWarps][kRows];
    __shared__ Line lines[kWarps][kRows];
    // Two, since other CTAs may be a tile ahead.
    __shared__ uint32_t tops[2][kWarps][kBlocks][kCtas];
    __shared__ uint64_t barriers[2];
    int32_t const warps = static_cast<int32_t>(blockDim.x) / kWarp;
    int32_t const warp = static_cast<int32_t>(threadIdx.x) / kWarp, lane = static_cast<int32_t>(threadIdx.x) % kWarp;
    int32_t const rank = static_cast<int32_t>(blockIdx.x) % kCtas;
    int32_t const clusters = static_cast<int32_t>(gridDim.x) / kCtas;
    int32_t const tiles = (a.rows - 1) / kBlock + 1;
    int32_t const column = warp * kColumns + lane * kLanes;
    float const count = static_cast<float>(a.width);
    T const* const x = static_cast<T const*>(a.x);
    T* const next = reinterpret_cast<T*>(memory) + warp * kRows * kColumns;

    // The first row of the CTA in a tile, and the last one, counted from it.
    auto const firstOf = [&](int32_t tile) { return min(tile * kBlock + rank * kRows, a.rows - 1); };
    auto const lastOf = [&](int32_t first) { return min(a.rows - 1 - first, kRows - 1); };
    auto const copy = [&](int32_t tile) {
        int32_t const first = firstOf(tile), last = lastOf(first);
        T const* const from = x + static_cast<int64_t>(first) * a.width + warp * kColumns + lane * kWide<T>;
        int32_t const bytes = a.width * static_cast<int32_t>(sizeof(T));
        uint32_t const to = sharedAddress(next + lane * kWide<T>);
#pragma unroll
        for (int32_t row = 0; row < kRows; ++row) {
            char const* const it = reinterpret_cast<char const*>(from) + int64_t{min(row, last)} * bytes;
            w8a8::copyAsync16(to + row * kColumns * sizeof(T), it, true);
        }
        w8a8::commitCopies();
    };
    int32_t tile = static_cast<int32_t>(blockIdx.x) / kCtas;
    followKernelAhead();
    copy(tile);
    if (threadIdx.x == 0) {
        for (uint64_t& barrier : barriers) hopper::initBarrier(sharedAddress(&barrier), 1);
        hopper::publishBarriers();
    }
    __syncwarp();
    arriveAtCluster();
    awaitCluster();
    for (hopper::Ring<2> turn; tile < tiles; tile += clusters, turn.advance()) {
        uint32_t const barrier = sharedAddress(&barriers[turn.stage]);
        if (threadIdx.x == 0) hopper::expectBytes(barrier, warps * sizeof(tops[0][0]));
        uint32_t words[kRows][kBlocks * kWords];
        w8a8::waitCopies<0>();
        __syncwarp();
#pragma unroll
        for (int32_t row = 0; row < kRows; ++row) {
#pragma unroll
            for (int32_t block = 0; block < kBlocks; ++block) {
                T const* const from = next + row * kColumns + block * kBlock + lane * kLanes;
                uint2 const pair = *reinterpret_cast<uint2 const*>(from);
                words[row][block * kWords] = pair.x;
                words[row][block * kWords + 1] = pair.y;
            }
        }
        __syncwarp();
        if (tile + clusters < tiles) copy(tile + clusters);

        Sums sums = reduceRows<T, kRows>(words, a.kind.layer);
#pragma unroll
        for (int32_t i = kRows; i < kWarp; i *= 2) {
            Sums const others = {__shfl_xor_sync(kAllLanes, sums.sum, i), __shfl_xor_sync(kAllLanes, sums.squares, i)};
            sums = merge(sums, others, kBlocks * kLanes * i);
        }
        auto& partial = partials[turn.stage];
        if (lane < kRows) partial[warp][lane] = sums;
        __syncthreads();
        // Lanes of the same row share the warps' sums of it.
        sums = {0.0f, 0.0f};
#pragma unroll 5
        for (int32_t i = lane / kRows; i < warps; i += kWarp / kRows) sums.sum += partial[i][lane % kRows].sum;
#pragma unroll
        for (int32_t i = kRows; i < kWarp; i *= 2) sums.sum += __shfl_xor_sync(kAllLanes, sums.sum, i);
        float const mean = sums.sum / count;
#pragma unroll 5
        for (int32_t i = lane / kRows; i < warps; i += kWarp / kRows) {
            Sums const its = partial[i][lane % kRows];
            float const apart = its.sum * (1.0f / kColumns) - mean;
            sums.squares += fmaf(apart * apart, kColumns, its.squares);
        }
#pragma unroll
        for (int32_t i = kRows; i < kWarp; i *= 2) sums.squares += __shfl_xor_sync(kAllLanes, sums.squares, i);
        float const rest = __frsqrt_rn(sums.squares / count + a.kind.eps);
        if (lane < kRows) lines[warp][lane] = {rest, -mean * rest};
        __syncwarp();

        // Calls `visit(row, values)` with the normalised rows in one of the warp's blocks, times a factor: two fused
        // operations a value, whatever the factor.
        int32_t const first = firstOf(tile), last = lastOf(first), group = first / a.rowsOfGroup;
        bool const oneGroup = group == (first + last) / a.rowsOfGroup;
        auto const forEach = [&](int32_t block, float times, auto visit) {
            int32_t at = column + block * kBlock;
            int32_t end = last;
            asm volatile("" : "+r"(at), "+r"(end));  // addresses are not worth registers from one block to the next
            float scale[kLanes], shift[kLanes];
            auto const modulateAs = [&](int32_t group) {
                load<true>(scale, a.scale + static_cast<int64_t>(group) * a.width + at);
                load<true>(shift, a.shift + static_cast<int64_t>(group) * a.width + at);
#pragma unroll
                for (int32_t i = 0; i < kLanes; ++i) scale[i] *= times, shift[i] *= times;
            };
            auto const visitRow = [&](int32_t row, uint32_t low, uint32_t high) {
                Line const line = lines[warp][row];
                float2 const pairs[] = {attn::unpack<T>(low), attn::unpack<T>(high)};
                float v[kLanes] = {pairs[0].x, pairs[0].y, pairs[1].x, pairs[1].y};
#pragma unroll
                for (int32_t i = 0; i < kLanes; ++i) {
                    v[i] = fmaf(fmaf(v[i], line.factor, line.offset), scale[i], shift[i]);
                }
                visit(min(row, end), v);
            };
            if (oneGroup) {
                modulateAs(group);
#pragma unroll
                for (int32_t row = 0; row < kRows; ++row) {
                    visitRow(row, words[row][block * kWords], words[row][block * kWords + 1]);
                }
            } else {
                // So rare that it may read the rows again, for short code.
#pragma unroll 1
                for (int32_t row = 0; row < kRows; ++row) {
                    int32_t const token = first + min(row, last);
                    modulateAs(token / a.rowsOfGroup);
                    T const* const from = x + static_cast<int64_t>(token) * a.width + at;
                    uint2 const pair = *reinterpret_cast<uint2 const*>(from);
                    visitRow(row, pair.x, pair.y);
                }
            }
        };
        hopper::settle(words);
#pragma unroll
        for (int32_t block = 0; block < kBlocks; ++block) {
            float amax = kLeastAmax;
            forEach(block, 1.0f, [&](int32_t, float (&v)[kLanes]) {
#pragma unroll
                for (int32_t i = 0; i < kLanes; ++i) amax = fmaxf(amax, fabsf(v[i]));
            });
            // Bits of what is not negative order as it does.
            uint32_t const top = __reduce_max_sync(kAllLanes, __float_as_uint(amax));
            if (lane < kCtas) storeTo(lane, sharedAddress(&tops[turn.stage][warp][block][rank]), barrier, top);
        }
        hopper::wait(barrier, turn.parity);
        hopper::settle(words);
        float factors[kBlocks];
#pragma unroll
        for (int32_t block = 0; block < kBlocks; ++block) {
            uint32_t const top = __reduce_max_sync(kAllLanes, tops[turn.stage][warp][block][lane % kCtas]);
            float const amax = __uint_as_float(top);
            factors[block] = __fdiv_rn(kTop<kFormat>, amax);
            if (rank == 0 && lane == 0) {
                int64_t const at = (static_cast<int64_t>(tile) * warps + warp) * kBlocks + block;
                a.s[at] = __fdiv_rn(amax, kTop<kFormat>);
            }
        }
#pragma unroll
        for (int32_t block = 0; block < kBlocks; ++block) {
            int8_t* q = a.q + static_cast<int64_t>(first) * a.width + column + block * kBlock;
            asm volatile("" : "+l"(q));  // nor are its parts
            __builtin_assume(__isGlobal(q));
            forEach(block, factors[block], [&](int32_t row, float (&v)[kLanes]) {
                *reinterpret_cast<uint32_t*>(q + int64_t{row} * a.width) = toWord<kFormat>(v, 1.0f);
            });
        }
    }
#endif
}

// Whether rows are such that whole warps have them. Their accesses must be wide.
inline bool fits(DType type, int64_t width) {
    return type != DType::kF32 && width % kColumns == 0 && width <= kWidest;
}

// Enqueues the kernel, for as many clusters as run at a time: cudaErrorNotSupported if a part of a GPU has room for none.
template <Format kFormat, class T, class Arguments>
Status launch(Arguments const& arguments, cudaStream_t stream) {
    auto* const run = kernel<kFormat, T, Arguments>;
    int32_t const shared = kRows * arguments.width * static_cast<int32_t>(sizeof(T));
    cudaError_t error = cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return {nullptr, error};
    cudaLaunchAttribute attributes[] = {{}, beginEarly()};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = kCtas;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<uint32_t>(ceilDiv(arguments.rows, kBlock)) * kCtas);
    config.blockDim = dim3(static_cast<uint32_t>(arguments.width / kColumns * kWarp));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1;
    int clusters = 0;
    error = cudaOccupancyMaxActiveClusters(&clusters, run, &config);
    if (error != cudaSuccess) return {nullptr, error};
    if (clusters == 0) return {nullptr, cudaErrorNotSupported};
    config.numAttrs = 2;
    config.gridDim.x = std::min(config.gridDim.x, static_cast<uint32_t>(clusters) * kCtas);
    return launched(cudaLaunchKernelEx(&config, run, arguments));
}

}  // namespace turbo::norm_quantize
