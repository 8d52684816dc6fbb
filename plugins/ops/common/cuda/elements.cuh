// Elements of f32, bf16 and f16 in memory, f32 in registers, and what kernels over rows of them share:
// reductions and the choice of a kernel by element type. A wide access moves N elements in as few pieces of
// up to 16 bytes as there can be, and needs an address that is a multiple of a piece; otherwise elements go
// one by one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "op.h"

namespace turbo {

constexpr int32_t kWarp = 32;
constexpr int32_t kWarpsMax = 32;
constexpr uint32_t kAllLanes = 0xffffffff;

// Elements of one wide access to a T.
template <class T>
constexpr int32_t kWide = 16 / static_cast<int32_t>(sizeof(T));

template <class T, int32_t N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T at[N];
};

template <bool wide, int32_t N, class T>
__device__ __forceinline__ void load(float (&to)[N], T const* from) {
    if constexpr (wide) {
        auto const pack = *reinterpret_cast<Pack<T, N> const*>(from);
#pragma unroll
        for (int32_t i = 0; i < N; ++i) to[i] = static_cast<float>(pack.at[i]);
    } else {
#pragma unroll
        for (int32_t i = 0; i < N; ++i) to[i] = static_cast<float>(from[i]);
    }
}

// The same as they lie.
template <bool wide, int32_t N, class T>
__device__ __forceinline__ void load(Pack<T, N>& to, T const* from) {
    if constexpr (wide) {
        to = *reinterpret_cast<Pack<T, N> const*>(from);
    } else {
#pragma unroll
        for (int32_t i = 0; i < N; ++i) to.at[i] = from[i];
    }
}

// Elements of 16 bits are converted anew for each use from here on: as floats they would take twice the registers.
template <class T, int32_t N>
__device__ __forceinline__ void keepPacked(Pack<T, N>& pack) {
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
        for (int32_t i = 0; i < N / 2; ++i) asm volatile("" : "+r"(reinterpret_cast<uint32_t*>(pack.at)[i]));
    }
}

// To the nearest T.
template <bool wide, int32_t N, class From, class T>
__device__ __forceinline__ void store(T* to, From const (&from)[N]) {
    if constexpr (wide) {
        Pack<T, N> pack;
#pragma unroll
        for (int32_t i = 0; i < N; ++i) pack.at[i] = static_cast<T>(from[i]);
        *reinterpret_cast<Pack<T, N>*>(to) = pack;
    } else {
#pragma unroll
        for (int32_t i = 0; i < N; ++i) to[i] = static_cast<T>(from[i]);
    }
}

// The same as they lie.
template <bool wide, int32_t N, class T>
__device__ __forceinline__ void store(T* to, Pack<T, N> const& from) {
    if constexpr (wide) {
        *reinterpret_cast<Pack<T, N>*>(to) = from;
    } else {
#pragma unroll
        for (int32_t i = 0; i < N; ++i) to[i] = from.at[i];
    }
}

// The same sum in every lane.
__device__ __forceinline__ float warpSum(float x) {
#pragma unroll
    for (int32_t lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAllLanes, x, lane);
    return x;
}

// The same sum in every thread of a CTA of whole warps. `partial` must not be in use by an earlier reduction.
__device__ __forceinline__ float blockSum(float x, float (&partial)[kWarpsMax]) {
    uint32_t const warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    x = warpSum(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warpSum(lane < blockDim.x / kWarp ? partial[lane] : 0.0f);
}

// The largest of values that are not negative, in every thread of a CTA of whole warps. Their bits order as
// they do.
__device__ __forceinline__ float blockMax(float x, uint32_t (&partial)[kWarpsMax]) {
    uint32_t const warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint32_t const top = __reduce_max_sync(kAllLanes, __float_as_uint(x));
    if (lane == 0) partial[warp] = top;
    __syncthreads();
    return __uint_as_float(__reduce_max_sync(kAllLanes, lane < blockDim.x / kWarp ? partial[lane] : 0));
}

// A type as an argument.
template <class T>
struct Tag {
    using Type = T;
};

// `launch` with the tag of the element type.
template <class Launch>
Status withType(DType type, Launch&& launch) {
    switch (type) {
        case DType::kF32: return launch(Tag<float>{});
        case DType::kBF16: return launch(Tag<__nv_bfloat16>{});
        case DType::kF16: return launch(Tag<__half>{});
        default: return {"`T` must be f32, bf16 or f16"};
    }
}

// `launch` with the element type and with whether its accesses are wide.
template <class Launch>
Status withAccess(DType type, bool wide, Launch&& launch) {
    return withType(type, [&](auto tag) {
        return wide ? launch(tag, std::true_type{}) : launch(tag, std::false_type{});
    });
}

// Whether wide accesses to T can start at every `width` elements of it and of tensors beside it.
template <class... Tensors>
bool wideRows(Tensor const& x, int64_t width, Tensors const&... beside) {
    auto const aligned = [](Tensor const& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
    int64_t const lanes = x.type == DType::kF32 ? kWide<float> : kWide<__half>;
    return width % lanes == 0 && aligned(x) && (aligned(beside) && ...);
}

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace turbo
