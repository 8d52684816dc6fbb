// Instructions of sm_90a: barriers in shared memory, bulk tensor copies (TMA) and matrix products of a warpgroup
// (PTX ISA, "mbarrier", "cp.async.bulk.tensor", "wgmma", "setmaxnreg").
//
// Only the architecture-specific sm_90a has them, not the PTX that later GPUs are compiled from: kernels hold
// their bodies in `#if TURBO_HOPPER`, and the host chooses them by `describeDevice` alone.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "overlap.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TURBO_HOPPER 1
#else
#define TURBO_HOPPER 0
#endif

namespace turbo::hopper {

constexpr int32_t kWarpgroup = 128;  // threads of a warpgroup
constexpr int32_t kRow = 128;        // bytes of a row in shared memory, the width of the swizzle
constexpr int32_t kAlignment = 1024; // of a tile of such rows: eight of them are one period of the swizzle

// Whether a thread block of kThreads starts with as many registers as `wanted` ones, which its warpgroups then divide
// anew: a thread starts with a multiple of eight of a multiprocessor's 65536.
template <int32_t kThreads>
__host__ __device__ constexpr bool hasRegisters(int32_t wanted) {
    return wanted <= 65536 / kThreads / 8 * 8 * kThreads;
}

#if TURBO_HOPPER

// A barrier is 8 bytes of shared memory. It counts arrivals and bytes, and its phases alternate in parity.
__device__ __forceinline__ void initBarrier(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Shows initialised barriers to the copy engine.
__device__ __forceinline__ void publishBarriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase wait for as many bytes of copies.
__device__ __forceinline__ void expectBytes(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Whether the phase of this parity is over.
__device__ __forceinline__ bool isOver(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.b32 %0, 1, 0, over;\n"
        "}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
    return over != 0;
}

// Waits until the phase of this parity is over.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n"
            ".reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.b32 %0, 1, 0, over;\n"
            "}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (over == 0);
}

// Where a ring of buffers stands: the one that is next, and the parity of its phase.
template <int32_t kStages>
struct Ring {
    int32_t stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Copies a box of a tensor to shared memory; its bytes, zeros outside the tensor included, count at the barrier.
__device__ __forceinline__ void copyBox(
    uint32_t shared, CUtensorMap const& map, uint32_t barrier, int32_t column, int32_t row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4}], [%2];" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

__device__ __forceinline__ void copyBox(
    uint32_t shared, CUtensorMap const& map, uint32_t barrier, int32_t c0, int32_t c1, int32_t c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5}], [%2];" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}

__device__ __forceinline__ void copyBox(uint32_t shared, CUtensorMap const& map, uint32_t barrier, int32_t c0,
                                        int32_t c1, int32_t c2, int32_t c3, int32_t c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}

// Shows what this thread did in shared memory to products and to the copy engine; a barrier has to follow.
__device__ __forceinline__ void publishShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies `bytes`, a multiple of 16, as they lie.
__device__ __forceinline__ void copyBytes(uint32_t shared, void const* global, uint32_t bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
        "l"(global), "r"(bytes), "r"(barrier)
        : "memory");
}

// Stores four 8 x 8 matrices of 16 bit elements; lane i says where row i % 8 of matrix i / 8 goes.
__device__ __forceinline__ void storeMatrices(uint32_t row, uint32_t const (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void prefetchMap(CUtensorMap const& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The descriptor of a tile at `shared` of rows of kRowBytes, 64 or 128, with K along the row and swizzled as the copy
// engine does it for rows that wide: its address and the distance of eight rows, in units of 16 bytes. A product takes
// 32 bytes of each row; the next ones are kNextK further on.
template <int32_t kRowBytes = kRow>
__device__ __forceinline__ uint64_t describe(uint32_t shared) {
    static_assert(kRowBytes == 64 || kRowBytes == 128);
    constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : 2} << 62;
    constexpr uint64_t kEightRows = uint64_t{8 * kRowBytes / 16} << 32;
    constexpr uint64_t kIgnored = uint64_t{1} << 16;
    return kSwizzle | kEightRows | kIgnored | (shared >> 4 & 0x3fff);
}
constexpr uint64_t kNextK = 32 / 16;

// The descriptor of rows along K of kRowBytes, 64 or 128, swizzled: of tiles that follow one another along N, `next`
// bytes apart. A product takes 16 rows; the next ones of kRow bytes are kNextRows further on.
template <int32_t kRowBytes = kRow>
__device__ __forceinline__ uint64_t describeColumns(uint32_t shared, uint32_t next) {
    static_assert(kRowBytes == 64 || kRowBytes == 128);
    constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : 2} << 62;
    constexpr uint64_t kEightRows = uint64_t{8 * kRowBytes / 16} << 32;
    return kSwizzle | kEightRows | uint64_t{next / 16} << 16 | (shared >> 4 & 0x3fff);
}
constexpr uint64_t kNextRows = 16 * kRow / 16;

// Before the first product of a group, and after anything else touched its registers.
__device__ __forceinline__ void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` groups of products are under way.
template <int32_t kPending>
__device__ __forceinline__ void waitProducts() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from making operands after the fence below it.
template <int32_t kCount, int32_t kWords>
__device__ __forceinline__ void settle(uint32_t (&operands)[kCount][kWords]) {
#pragma unroll
    for (auto& words : operands) {
#pragma unroll
        for (uint32_t& word : words) asm volatile("" : "+r"(word)::"memory");
    }
}

// Names and constraints of as many sums, and the numbers of the operands that follow them.
#define TURBO_NAMES_16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TURBO_NAMES_32 \
    TURBO_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TURBO_NAMES_64                                                                                        \
    TURBO_NAMES_32                                                                                            \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TURBO_SUMS_8(kind, s, i)                                                                                \
    kind((s)[i]), kind((s)[i + 1]), kind((s)[i + 2]), kind((s)[i + 3]), kind((s)[i + 4]), kind((s)[i + 5]), \
        kind((s)[i + 6]), kind((s)[i + 7])
#define TURBO_SUMS_32(kind, s, i)                                                                        \
    TURBO_SUMS_8(kind, s, i), TURBO_SUMS_8(kind, s, i + 8), TURBO_SUMS_8(kind, s, i + 16), \
        TURBO_SUMS_8(kind, s, i + 24)

// Keeps the compiler from reading sums before the wait above it. One statement: loops of them would keep sums in
// memory.
#define TURBO_SETTLE(T, kind)                                                                                      \
    __device__ __forceinline__ void settle(T (&s)[16]) {                                                           \
        asm volatile("" : TURBO_SUMS_8(kind, s, 0), TURBO_SUMS_8(kind, s, 8)::"memory");                           \
    }                                                                                                              \
    __device__ __forceinline__ void settle(T (&s)[32]) { asm volatile("" : TURBO_SUMS_32(kind, s, 0)::"memory"); } \
    __device__ __forceinline__ void settle(T (&s)[64]) {                                                           \
        asm volatile("" : TURBO_SUMS_32(kind, s, 0), TURBO_SUMS_32(kind, s, 32)::"memory");                        \
    }
TURBO_SETTLE(int32_t, "+r")
TURBO_SETTLE(float, "+f")
#undef TURBO_SETTLE

// The 64 sums of a product of 64 x 128 in a thread: lane l of warp w holds, for j in 0..16, columns 8 j + 2 (l % 4) and
// the next one of row 16 w + l / 4 in sums 4 j and 4 j + 1, and of the row eight further down in 4 j + 2 and 4 j + 3.

// sums = a b^T, or sums += a b^T: 64 rows of `a` by 128 of `b`, 32 INT8 along K.
__device__ __forceinline__ void multiply(int32_t (&s)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " TURBO_NAMES_64 "}, %64, %65, add;\n"
        "}"
        : TURBO_SUMS_32("+r", s, 0), TURBO_SUMS_32("+r", s, 32)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
}

// The same of E4M3, whose sums are f32 in name: the tensor cores keep some 14 bits of them.
__device__ __forceinline__ void multiply(float (&s)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " TURBO_NAMES_64 "}, %64, %65, add, 1, 1;\n"
        "}"
        : TURBO_SUMS_32("+f", s, 0), TURBO_SUMS_32("+f", s, 32)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
}

// The product of INT8 with 64 rows of `b`.
__device__ __forceinline__ void multiply(int32_t (&s)[32], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 " TURBO_NAMES_32 "}, %32, %33, add;\n"
        "}"
        : TURBO_SUMS_32("+r", s, 0)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
}

// The product of E4M3 with 64 rows of `b` and `a` in registers, which hold what mma.sync's fragments of 16 x 32 do, 16
// rows a warp.
__device__ __forceinline__ void multiplyE4m3(float (&s)[32], uint32_t const (&a)[4], uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 " TURBO_NAMES_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1;\n"
        "}"
        : TURBO_SUMS_32("+f", s, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));
}

// The same of bf16 or f16, 16 along K: 64 rows of `b`, or 32 or 128 columns of it whose rows lie along K.
#define TURBO_MULTIPLY_HALF(T, type)                                                                             \
    __device__ __forceinline__ void multiply(                                                                    \
        T, float (&s)[32], uint32_t const (&a)[4], uint64_t b, bool add) {                                       \
        asm volatile(                                                                                            \
            "{\n"                                                                                                \
            ".reg .pred add;\n"                                                                                  \
            "setp.ne.b32 add, %37, 0;\n"                                                                         \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " TURBO_NAMES_32                       \
            "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"                                                      \
            "}"                                                                                                  \
            : TURBO_SUMS_32("+f", s, 0)                                                                          \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));               \
    }                                                                                                            \
    __device__ __forceinline__ void multiplyColumns(                                                             \
        T, float (&s)[16], uint32_t const (&a)[4], uint64_t b, bool add) {                                       \
        asm volatile(                                                                                            \
            "{\n"                                                                                                \
            ".reg .pred add;\n"                                                                                  \
            "setp.ne.b32 add, %21, 0;\n"                                                                         \
            "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " " TURBO_NAMES_16                       \
            "}, {%16, %17, %18, %19}, %20, add, 1, 1, 1;\n"                                                      \
            "}"                                                                                                  \
            : TURBO_SUMS_8("+f", s, 0), TURBO_SUMS_8("+f", s, 8)                                                 \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));               \
    }                                                                                                            \
    __device__ __forceinline__ void multiplyColumns(                                                             \
        T, float (&s)[64], uint32_t const (&a)[4], uint64_t b, bool add) {                                       \
        asm volatile(                                                                                            \
            "{\n"                                                                                                \
            ".reg .pred add;\n"                                                                                  \
            "setp.ne.b32 add, %69, 0;\n"                                                                         \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " TURBO_NAMES_64                      \
            "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n"                                                      \
            "}"                                                                                                  \
            : TURBO_SUMS_32("+f", s, 0), TURBO_SUMS_32("+f", s, 32)                                              \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));               \
    }
TURBO_MULTIPLY_HALF(__nv_bfloat16, "bf16")
TURBO_MULTIPLY_HALF(__half, "f16")
#undef TURBO_MULTIPLY_HALF

// sums = a b^T, or sums += a b^T, of bf16 or f16: 64 rows of `a` by 128 of `b`, 16 along K.
#define TURBO_MULTIPLY_ROWS(T, type)                                                                             \
    __device__ __forceinline__ void multiply(T, float (&s)[64], uint64_t a, uint64_t b, bool add) {              \
        asm volatile(                                                                                            \
            "{\n"                                                                                                \
            ".reg .pred add;\n"                                                                                  \
            "setp.ne.b32 add, %66, 0;\n"                                                                         \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " TURBO_NAMES_64                      \
            "}, %64, %65, add, 1, 1, 0, 0;\n"                                                                    \
            "}"                                                                                                  \
            : TURBO_SUMS_32("+f", s, 0), TURBO_SUMS_32("+f", s, 32)                                              \
            : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                   \
    }
TURBO_MULTIPLY_ROWS(__nv_bfloat16, "bf16")
TURBO_MULTIPLY_ROWS(__half, "f16")
#undef TURBO_MULTIPLY_ROWS

#undef TURBO_NAMES_16
#undef TURBO_NAMES_32
#undef TURBO_NAMES_64
#undef TURBO_SUMS_8
#undef TURBO_SUMS_32

// Gives registers of this warpgroup back, or takes them.
template <int32_t kRegisters>
__device__ __forceinline__ void shrinkRegisters() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int32_t kRegisters>
__device__ __forceinline__ void growRegisters() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Waits for the other threads of this warpgroup, number 0 to 2.
__device__ __forceinline__ void syncWarpgroup(int32_t warpgroup) {
    asm volatile("bar.sync %0, %1;" ::"r"(warpgroup + 1), "n"(kWarpgroup) : "memory");
}

// Two warpgroups that take turns: number `warpgroup`, 0 or 1, waits for its turn, or tells the other one that it is
// over.
constexpr int32_t kFirstTurn = 4;  // of the named barriers
__device__ __forceinline__ void awaitTurn(int32_t warpgroup) {
    asm volatile("bar.sync %0, %1;" ::"r"(kFirstTurn + warpgroup), "n"(2 * kWarpgroup) : "memory");
}

__device__ __forceinline__ void endTurn(int32_t warpgroup) {
    asm volatile("bar.arrive %0, %1;" ::"r"(kFirstTurn + 1 - warpgroup), "n"(2 * kWarpgroup) : "memory");
}

#endif  // TURBO_HOPPER

// The current device as kernels are chosen by it. TURBO_KERNELS=portable asks for those that run on other GPUs as well,
// `ampere` for those among them that need no clusters either.
struct Device {
    bool isHopper = false;   // kernels for sm_90a are to run: they were compiled
    bool mayCluster = true;  // those of clusters are, where the code that runs knows them
    int32_t multiprocessors = 0;
};

inline cudaError_t describeDevice(Device& device) {
    auto const asksFor = [](char const* family) {
        char const* const asked = std::getenv("TURBO_KERNELS");
        return asked != nullptr && std::strcmp(asked, family) == 0;
    };
    static bool const ampere = asksFor("ampere");
    device = {};
    device.mayCluster = !ampere;
#ifdef TURBO_SM90A
    static bool const portable = ampere || asksFor("portable");
    if (portable) return cudaSuccess;
    int index = 0, major = 0, minor = 0, count = 0;
    cudaError_t error = cudaGetDevice(&index);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index);
    if (error == cudaSuccess) device = {major == 9 && minor == 0, true, count};
    return error;
#else
    return cudaSuccess;
#endif
}

// Where kernels that wait for the one ahead are enqueued: they begin early on Hopper.
inline Queue behind(cudaStream_t stream) {
    Device device;
    return {stream, describeDevice(device) == cudaSuccess && device.isHopper};
}

// A tensor of bytes as the copy engine sees it: `sizes` and, from the second axis on, `strides` in bytes, innermost
// first; a box of it becomes rows of kRow bytes, swizzled. The driver is asked for by name: nothing is linked.
template <uint32_t kRank>
cudaError_t makeMap(CUtensorMap& map, void const* data, uint64_t const (&sizes)[kRank],
                    uint64_t const (&strides)[kRank - 1], uint32_t const (&box)[kRank]) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static Encode const encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result = {};
        constexpr unsigned int kSince = 12000;
        cudaError_t const error = cudaGetDriverEntryPointByVersion(
            "cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result);
        bool const has = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
        return has ? reinterpret_cast<Encode>(found) : nullptr;
    }();
    if (encode == nullptr) return cudaErrorCallRequiresNewerDriver;
    uint32_t steps[kRank];
    for (uint32_t& step : steps) step = 1;
    CUresult const result =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, kRank, const_cast<void*>(data), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace turbo::hopper
