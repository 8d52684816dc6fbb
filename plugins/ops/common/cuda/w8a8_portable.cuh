// The W8A8 linear of sm_80 and newer: mma.sync and cp.async, and from sm_90 on clusters, for blocks that two CTAs share.
//
// A CTA computes a tile of 128 or 64 by 128 outputs, and a step of its loop takes one block of K. Shared memory holds a
// few steps. A step is the rows of q, then 128 rows of w, 128 bytes each: eight chunks of 16 bytes, chunk c of row r at
// place c ^ (r % 8). The eight rows that ldmatrix reads at a time and the eight chunks of a row that cp.async writes
// then lie in different banks. Afterwards the same memory holds the tile of outputs in f32.
#pragma once

#include "mma_s8.cuh"
#include "op.h"
#include "w8a8_tile.cuh"

namespace turbo::w8a8::portable {

constexpr int32_t kTile = kBlock;       // columns of a tile of outputs, and K of a step
constexpr int32_t kChunk = 16;          // bytes of one copy
constexpr int32_t kWarpRows = 64;       // outputs of a warp
constexpr int32_t kWarpColumns = 32;
constexpr int32_t kMmaRows = 16;        // outputs and K of an mma
constexpr int32_t kMmaColumns = 8;
constexpr int32_t kMmaK = 32;
constexpr int32_t kPitch = kTile + 8;   // floats from row to row of the outputs: stores meet no bank twice

// Sizes of a tile, of what a CTA takes for it, and how many CTAs of a cluster work together.
template <int32_t kRowsOfTile, int32_t kStepsHeld, int32_t kClusterSize = 1>
struct Sizes {
    static constexpr int32_t kRows = kRowsOfTile;
    static constexpr int32_t kStages = kStepsHeld;  // steps in shared memory
    static constexpr int32_t kCtas = kClusterSize;
    static constexpr int32_t kBytesX = kRows * kTile;
    static constexpr int32_t kStage = kBytesX + kTile * kTile;
    static constexpr int32_t kWarps = (kRows / kWarpRows) * (kTile / kWarpColumns);
    static constexpr int32_t kThreads = 32 * kWarps;
    // Behind the steps, what other CTAs write here.
    static constexpr int32_t kOthersAt = kStages * kStage;
    static constexpr int32_t kShared = kOthersAt + (kCtas > 1 ? 16 : 0);
    static_assert((kRows * kPitch + kWarps) * sizeof(float) <= kOthersAt && kShared <= 99 * 1024);
    static_assert(kRows >= tile::kFewestRows);
};
using Tall = Sizes<kBlock, 3>;
// Half as many outputs in half the memory, so that two CTAs share a multiprocessor that has 100 KiB of it.
using Short = Sizes<kBlock / 2, 2>;
// Two of those that have a block of 128 x 128.
using Pair = Sizes<kBlock / 2, 2, 2>;

// A tile of outputs in shared memory.
template <class S>
struct Tile {
    static constexpr int32_t kWarps = S::kWarps, kThreads = S::kThreads;

    Place at;
    float* y;        // rows of kPitch
    float* scratch;  // kWarps

    static constexpr bool kWide = false;
    template <class T>
    static constexpr int32_t kRun = 16 / sizeof(T);

    template <int32_t kWidth, class Visit>
    __device__ __forceinline__ void change(Visit visit) {
        runs<kWidth>([&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth], float* from) {
            visit(row, column, valid, values);
#pragma unroll
            for (int32_t i = 0; i < kWidth; ++i) from[i] = values[i];
        });
    }

    template <int32_t kWidth, class Visit>
    __device__ __forceinline__ void forEachRun(Visit visit) {
        runs<kWidth>([&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth], float*) {
            visit(row, column, valid, values);
        });
    }

    __device__ __forceinline__ float maximum(float value) {
#pragma unroll
        for (int32_t lanes = 16; lanes > 0; lanes /= 2) {
            value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lanes));
        }
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
        __syncthreads();
#pragma unroll
        for (int32_t warp = 0; warp < kWarps; ++warp) value = fmaxf(value, scratch[warp]);
#if __CUDA_ARCH__ >= 900
        if constexpr (S::kCtas > 1) {
            static_assert(S::kCtas == 2);
            float* const others = y + S::kOthersAt / sizeof(float);
            // The other one has begun.
            awaitCluster();
            uint32_t const other = 1 - blockIdx.x % S::kCtas;
            if (threadIdx.x == 0) storeToCta(other, sharedAddress(others), __float_as_uint(value));
            arriveAtCluster();
            awaitCluster();
            value = fmaxf(value, *others);
        }
#endif
        return value;
    }

    __device__ __forceinline__ bool isFirst() const { return threadIdx.x == 0 && blockIdx.x % S::kCtas == 0; }

private:
    template <int32_t kWidth, class Visit>
    __device__ __forceinline__ void runs(Visit visit) {
        constexpr int32_t kRuns = kTile / kWidth;
        int32_t const thread = static_cast<int32_t>(threadIdx.x);
        int32_t const column = thread % kRuns * kWidth;
        int32_t const valid = min(kWidth, at.columns - column);
        if (valid <= 0) return;
#pragma unroll 1
        for (int32_t row = thread / kRuns; row < at.rows; row += kThreads / kRuns) {
            float* const from = y + row * kPitch + column;
            alignas(16) float values[kWidth];
#pragma unroll
            for (int32_t i = 0; i < kWidth; i += 4) {
                *reinterpret_cast<float4*>(values + i) = *reinterpret_cast<float4 const*>(from + i);
            }
            visit(at.row + row, at.column + column, valid, values, from);
        }
    }
};

// One thread's share in filling kCount rows of an operand of a step: a chunk of every kThreads / 8th row.
template <int32_t kCount, int32_t kThreads>
struct Loader {
    int8_t const* from;  // the operand's first row of the tile
    int32_t last;        // last row of the tile that exists, which stands for those after it
    int32_t k;

    template <bool kAsync>
    __device__ __forceinline__ void load(uint32_t shared, int32_t step) const {
        constexpr int32_t kRows = kThreads * kChunk / kTile;
        static_assert(kRows % 8 == 0, "the chunk's place is the same in all rows of a thread");
        int32_t const thread = static_cast<int32_t>(threadIdx.x);
        int32_t const row = thread / 8;
        int32_t const chunk = thread % 8;
        int64_t const column = static_cast<int64_t>(step) * kTile + chunk * kChunk;
        shared += row * kTile + (chunk ^ row % 8) * kChunk;
        if constexpr (kAsync) {
            bool const valid = column < k;
            int8_t const* const source = from + (valid ? column : 0);
#pragma unroll
            for (int32_t i = 0; i < kCount; i += kRows) {
                copyAsync16(shared + i * kTile, source + static_cast<int64_t>(min(row + i, last)) * k, valid);
            }
        } else {
            int32_t const valid = static_cast<int32_t>(min(int64_t{kChunk}, k - column));
#pragma unroll 1
            for (int32_t i = 0; i < kCount; i += kRows) {
                int8_t const* const source = from + static_cast<int64_t>(min(row + i, last)) * k + column;
                uint32_t words[4] = {};
#pragma unroll
                for (int32_t b = 0; b < kChunk; ++b) {
                    uint32_t const value = b < valid ? static_cast<uint8_t>(source[b]) : 0;
                    words[b / 4] |= value << b % 4 * 8;
                }
                storeShared16(shared + i * kTile, words);
            }
        }
    }
};

template <class S>
using LoaderX = Loader<S::kRows, S::kThreads>;
template <class S>
using LoaderW = Loader<kTile, S::kThreads>;

// The outputs of a warp as mma lays them out: row tile, column tile, register.
using Accumulators = float[kWarpRows / kMmaRows][kWarpColumns / kMmaColumns][4];

// Writes a warp's sums, from row `row` and column `column` of the tile on, to shared memory.
__device__ __forceinline__ void storeSums(float* y, Accumulators const& acc, int32_t row, int32_t column) {
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
    for (int32_t i = 0; i < kWarpRows / kMmaRows; ++i) {
#pragma unroll
        for (int32_t j = 0; j < kWarpColumns / kMmaColumns; ++j) {
            float* const to =
                y + (row + i * kMmaRows + lane / 4) * kPitch + column + j * kMmaColumns + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
            *reinterpret_cast<float2*>(to + kMmaRows / 2 * kPitch) = make_float2(acc[i][j][2], acc[i][j][3]);
        }
    }
}

// Sums of a step in one tile of an mma.
template <Format>
struct Sums;

// 1.5 * 2^23, as f32 and as its bits: INT32 sums start from the bits, and one that stays within 2^22 of them reads as
// the f32 of 1.5 * 2^23 + sum, exactly. A subtraction is cheaper than a conversion. |sum| <= 128 * 2^14 = 2^21.
template <>
struct Sums<Format::kInt8> {
    static constexpr float kMagic = 12582912.0f;
    static constexpr int32_t kBits = 0x4B400000;
    int32_t x[4] = {kBits, kBits, kBits, kBits};

    __device__ __forceinline__ void add(uint32_t const (&a)[4], uint32_t b0, uint32_t b1) { mmaS8(x, a, b0, b1); }
    __device__ __forceinline__ float at(int32_t i) const { return __int_as_float(x[i]) - kMagic; }
};

template <>
struct Sums<Format::kE4m3> {
    float x[4] = {};

    __device__ __forceinline__ void add(uint32_t const (&a)[4], uint32_t b0, uint32_t b1) { mmaE4m3(x, a, b0, b1); }
    __device__ __forceinline__ float at(int32_t i) const { return x[i]; }
};

// acc += sums * scale of one step, whose rows of the warp begin at `q` and `w` in shared memory. Weights stay
// in registers, a row tile of activations comes while the one before is multiplied.
template <Format kFormat>
__device__ __forceinline__ void multiply(Accumulators& acc, uint32_t q, uint32_t w, float scale) {
    constexpr int32_t kColumnTiles = kWarpColumns / kMmaColumns;
    uint32_t b[kColumnTiles][kTile / kMmaK / 2][4];
#pragma unroll
    for (int32_t j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int32_t pair = 0; pair < kTile / kMmaK / 2; ++pair) {
            loadMatrices(b[j][pair], (w ^ pair * 2 * kMmaK) + j * kMmaColumns * kTile);
        }
    }
#pragma unroll
    for (int32_t i = 0; i < kWarpRows / kMmaRows; ++i) {
        Sums<kFormat> sums[kColumnTiles];
#pragma unroll
        for (int32_t ks = 0; ks < kTile / kMmaK; ++ks) {
            uint32_t a[4];
            loadMatrices(a, (q ^ ks * kMmaK) + i * kMmaRows * kTile);
#pragma unroll
            for (int32_t j = 0; j < kColumnTiles; ++j) {
                sums[j].add(a, b[j][ks / 2][ks % 2 * 2], b[j][ks / 2][ks % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int32_t j = 0; j < kColumnTiles; ++j) {
#pragma unroll
            for (int32_t e = 0; e < 4; ++e) {
                acc[i][j][e] = fmaf(sums[j].at(e), scale, acc[i][j][e]);
            }
        }
    }
}

// The sums of a tile over all steps, for an epilogue, by all threads of a CTA. `scaleOf(step)` is asked for early, and
// `multiply(acc, x, w, scale)` adds the products of a step, whose rows of the warp begin at `x` and `w`.
template <class S, bool kAsync, class ScaleOf, class Multiply>
__device__ __forceinline__ Tile<S> sumSteps(uint8_t* memory, Place const& at, LoaderX<S> const& loadX,
                                            LoaderW<S> const& loadW, int32_t steps, ScaleOf scaleOf,
                                            Multiply multiply) {
    constexpr int32_t kStages = S::kStages, kStage = S::kStage;
    uint32_t const shared = sharedAddress(memory);
    auto const loadStep = [&](int32_t step, int32_t stage) {
        if (step < steps) {
            loadX.template load<kAsync>(shared + stage * kStage, step);
            loadW.template load<kAsync>(shared + stage * kStage + S::kBytesX, step);
        }
        commitCopies();
    };

    int32_t const warp = static_cast<int32_t>(threadIdx.x) / 32;
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
    int32_t const row = warp / (kTile / kWarpColumns) * kWarpRows;
    int32_t const column = warp % (kTile / kWarpColumns) * kWarpColumns;
    // A load of x takes rows 0-7 and 8-15 of one chunk, then of the next; a load of w four chunks of eight
    // rows. An exclusive or with the bytes of whole such loads moves along the row.
    uint32_t const x = shared + (row + lane % 16) * kTile + (lane / 16 ^ lane % 8) * kChunk;
    uint32_t const w = shared + S::kBytesX + (column + lane % 8) * kTile + (lane / 8 ^ lane % 8) * kChunk;
    Accumulators acc = {};

#pragma unroll
    for (int32_t stage = 0; stage < kStages - 1; ++stage) loadStep(stage, stage);
    int32_t stage = 0;
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step) {
        float const scale = scaleOf(step);
        waitCopies<kStages - 2>();
        // Everyone's part of this step has come, and everyone is done with the step before, whose place is
        // next.
        __syncthreads();
        loadStep(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
        multiply(acc, x + stage * kStage, w + stage * kStage, scale);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    waitCopies<0>();
    __syncthreads();

    float* const y = reinterpret_cast<float*>(memory);
    storeSums(y, acc, row, column);
    __syncthreads();
    return {at, y, y + S::kRows * kPitch};
}

template <class S, Format kFormat, class Epilogue, bool kAsync>
__global__ void __launch_bounds__(S::kThreads) kernel(Operands x, Epilogue epilogue) {
#if __CUDA_ARCH__ >= 900
    if constexpr (S::kCtas > 1) arriveAtCluster();
#else
    if constexpr (S::kCtas > 1) return;
#endif
    extern __shared__ __align__(1024) uint8_t memory[];
    Place at = place<S::kRows * S::kCtas, Epilogue::kLinears>(x, static_cast<int32_t>(blockIdx.x / S::kCtas));
    if constexpr (S::kCtas > 1) {
        // The last block may have no rows for the second.
        int32_t const before = static_cast<int32_t>(blockIdx.x % S::kCtas) * S::kRows;
        at.row += before;
        at.rows = min(S::kRows, at.rows - before);
    }
    auto const& own = epilogue.operands(x, at.linear);
    int32_t const steps = (x.k - 1) / kTile + 1;
    LoaderX<S> const loadQ{x.q + static_cast<int64_t>(min(at.row, x.m - 1)) * x.k, max(at.rows, 1) - 1, x.k};
    LoaderW<S> const loadW{own.weights.w + static_cast<int64_t>(at.column) * x.k, at.columns - 1, x.k};
    float const* const s = x.s + static_cast<int64_t>(at.row / kTile) * steps;
    float const* const ws = own.weights.ws + static_cast<int64_t>(at.column / kTile) * steps;
    Tile<S> tile = sumSteps<S, kAsync>(
        memory, at, loadQ, loadW, steps, [=](int32_t step) { return s[step] * ws[step]; }, multiply<kFormat>);
    epilogue(tile, own);
}

// Enqueues a kernel that gives a CTA each tile of the outputs of kLinears linears, `x.m` by `x.n` each.
template <class S, int32_t kLinears = 1, class X, class... P>
Status start(void (*kernel)(P...), X const& x, cudaStream_t stream, P const&... arguments) {
    cudaError_t const error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kShared);
    if (error != cudaSuccess) return {nullptr, error};
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = S::kCtas;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(tile::count<S::kRows * S::kCtas, kLinears>(x) * S::kCtas);
    config.blockDim = dim3(S::kThreads);
    config.dynamicSmemBytes = S::kShared;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = S::kCtas > 1 ? 1 : 0;
    return launched(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Whether the code of the kernel that the device runs was compiled for clusters.
template <Format kFormat, class Epilogue>
cudaError_t findClusters(bool& found) {
    cudaFuncAttributes attributes = {};
    cudaError_t const error = cudaFuncGetAttributes(&attributes, kernel<Pair, kFormat, Epilogue, true>);
    found = attributes.ptxVersion >= 90;
    return error;
}

template <class S, Format kFormat, class Epilogue>
Status launch(Operands const& x, Epilogue const& epilogue, cudaStream_t stream) {
    bool const async = aligned(x.q, x.k) && x.wideWeights;
    auto* const chosen = async ? kernel<S, kFormat, Epilogue, true> : kernel<S, kFormat, Epilogue, false>;
    return start<S, Epilogue::kLinears>(chosen, x, stream, x, epilogue);
}

}  // namespace turbo::w8a8::portable
