// The norm and its quantisation in one pass over memory, sm_90 and newer: a cluster of CTAs has 128 rows, each CTA
// holds its share of them in shared memory, and they tell one another the largest magnitudes of their blocks.
#pragma once

#include "../common/cuda/mma_s8.cuh"
#include "../common/cuda/norm.cuh"
#include "../common/cuda/quant.cuh"
#include "../common/cuda/shared.cuh"

namespace turbo::norm_quantize {

constexpr int32_t kWarps = 8;
constexpr int32_t kThreads = kWarps * kWarp;
constexpr int32_t kClusterMax = 8;
// Bytes of rows with which two CTAs share a multiprocessor's 227 KiB.
constexpr int32_t kRowBytesOfTwo = 97 * 1024;
// Bytes of shared memory beside the rows, rounded up.
constexpr int32_t kBeside = 3 * 1024;
// A lane's columns of a block.
constexpr int32_t kLanes = kBlock / kWarp;
constexpr int32_t kBlocksMax = kWidthMax / kBlock;

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void syncCluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A word of another CTA's shared memory, at the place of this CTA's `shared`.
__device__ __forceinline__ uint32_t loadFrom(uint32_t shared, uint32_t cta) {
    uint32_t address, word;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(cta));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

// The moments of a row of which the lanes hold interleaved runs of kLanes elements.
template <class T>
__device__ __forceinline__ Moments rowMoments(T const* row, int32_t width, NormKind kind) {
    float const count = static_cast<float>(width);
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % kWarp;
    float mean = 0.0f, squares = 0.0f, x[kLanes];
    if (kind.layer) {
        for (int32_t column = lane * kLanes; column < width; column += kBlock) {
            load<true>(x, row + column);
#pragma unroll
            for (float v : x) mean += v;
        }
        mean = warpSum(mean) / count;
    }
    for (int32_t column = lane * kLanes; column < width; column += kBlock) {
        load<true>(x, row + column);
#pragma unroll
        for (float v : x) squares = fmaf(v - mean, v - mean, squares);
    }
    return {mean, __frsqrt_rn(warpSum(squares) / count + kind.eps)};
}

#endif

// Arguments as kernel.cu has them. A warp takes every kWarps'th of the CTA's `held` rows.
template <Format kFormat, class T, class Arguments>
__global__ void __launch_bounds__(kThreads) kernel(Arguments a, int32_t held) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint4 memory[];
    __shared__ uint32_t greatest[kBlocksMax];  // bits of what is not negative order as it does
    __shared__ float factors[kBlocksMax];
    __shared__ Moments moments[kBlock];
    T* const rows = reinterpret_cast<T*>(memory);
    int32_t const warp = static_cast<int32_t>(threadIdx.x) / kWarp, lane = static_cast<int32_t>(threadIdx.x) % kWarp;
    int32_t const first = static_cast<int32_t>(blockIdx.x) * held;
    int32_t const mine = min(held, a.rows - first);
    int32_t const blocks = (a.width - 1) / kBlock + 1;
    for (int32_t i = threadIdx.x; i < blocks; i += kThreads) greatest[i] = __float_as_uint(kLeastAmax);

    T const* const from = static_cast<T const*>(a.x) + static_cast<int64_t>(first) * a.width;
    for (int32_t row = warp; row < mine; row += kWarps) {
        for (int32_t column = lane * kWide<T>; column < a.width; column += kWarp * kWide<T>) {
            int32_t const at = row * a.width + column;
            w8a8::copyAsync16(sharedAddress(rows + at), from + at, true);
        }
    }
    w8a8::commitCopies();
    w8a8::waitCopies<0>();
    __syncwarp();
    for (int32_t row = warp; row < mine; row += kWarps) {
        Moments const found = rowMoments(rows + row * a.width, a.width, a.kind);
        if (lane == 0) moments[row] = found;
    }
    __syncthreads();

    // Nearly always all rows belong to one group, and a quotient for each row costs more than the norm.
    int32_t const firstGroup = first / a.rowsOfGroup;
    bool const oneGroup = (first + mine - 1) / a.rowsOfGroup == firstGroup;
    // Calls `visit(row, values)` with the warp's normalised rows in one block of columns.
    auto const forEach = [&](int32_t block, auto visit) {
        int32_t const column = block * kBlock + lane * kLanes;
        if (column >= a.width) return;
        int32_t group = -1;
        float scale[kLanes], shift[kLanes];
        for (int32_t row = warp; row < mine; row += kWarps) {
            int32_t its = firstGroup;
            if (!oneGroup) its = (first + row) / a.rowsOfGroup;
            if (its != group) {
                group = its;
                load<true>(scale, a.scale + static_cast<int64_t>(group) * a.width + column);
                load<true>(shift, a.shift + static_cast<int64_t>(group) * a.width + column);
            }
            float v[kLanes];
            load<true>(v, rows + row * a.width + column);
#pragma unroll
            for (int32_t i = 0; i < kLanes; ++i) v[i] = normalize(v[i], moments[row], scale[i], shift[i]);
            visit(row, v);
        }
    };
    for (int32_t block = 0; block < blocks; ++block) {
        float amax = 0.0f;
        forEach(block, [&](int32_t, float (&v)[kLanes]) {
#pragma unroll
            for (float x : v) amax = fmaxf(amax, fabsf(x));
        });
        uint32_t const top = __reduce_max_sync(kAllLanes, __float_as_uint(amax));
        if (lane == 0) atomicMax(&greatest[block], top);
    }
    syncCluster();
    uint32_t ctas, rank;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ctas));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    for (int32_t block = threadIdx.x; block < blocks; block += kThreads) {
        uint32_t top = 0;
        for (uint32_t cta = 0; cta < ctas; ++cta) {
            top = max(top, loadFrom(sharedAddress(&greatest[block]), cta));
        }
        float const amax = __uint_as_float(top);
        factors[block] = __fdiv_rn(kTop<kFormat>, amax);
        if (rank == 0) a.s[static_cast<int64_t>(first / kBlock) * blocks + block] = __fdiv_rn(amax, kTop<kFormat>);
    }
    // Also keeps this CTA's maxima until the others have read them.
    syncCluster();
    int8_t* const q = a.q + static_cast<int64_t>(first) * a.width;
    for (int32_t block = 0; block < blocks; ++block) {
        forEach(block, [&](int32_t row, float (&v)[kLanes]) {
            int8_t values[kLanes];
            toBytes<kFormat>(values, v, factors[block]);
            store<true>(q + static_cast<int64_t>(row) * a.width + block * kBlock + lane * kLanes, values);
        });
    }
#endif
}

// CTAs of a cluster that share 128 rows of `bytes`, so few that two fit a multiprocessor, or else as many as there can
// be; 0 if not even those have their rows in `shared` bytes.
inline int32_t clusterSize(int64_t bytes, int32_t shared) {
    for (int32_t ctas = 1; ctas < kClusterMax; ctas *= 2) {
        if (kBlock / ctas * bytes <= kRowBytesOfTwo) return ctas;
    }
    return kBlock / kClusterMax * bytes <= shared - kBeside ? kClusterMax : 0;
}

// Enqueues the kernel for rows whose accesses are wide. What fails is CUDA's last error.
template <Format kFormat, class T, class Arguments>
void launch(Arguments const& arguments, int32_t ctas, cudaStream_t stream) {
    int32_t const held = kBlock / ctas;
    int32_t const shared = held * arguments.width * static_cast<int32_t>(sizeof(T));
    auto* const run = kernel<kFormat, T, Arguments>;
    if (cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess) return;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<uint32_t>(ctas);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<uint32_t>(ceilDiv(arguments.rows, kBlock)) * static_cast<uint32_t>(ctas));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, run, arguments, held);
}

}  // namespace turbo::norm_quantize
