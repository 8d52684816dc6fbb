// What the eight bits of quantised values are: the attribute `format` of the W8A8 ops.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "mma_e4m3.cuh"
#include "op.h"

namespace turbo {

enum class Format : int32_t { kInt8, kE4m3 };

// What the largest magnitude of a block becomes.
template <Format kFormat>
constexpr float kTop = kFormat == Format::kInt8 ? 128.0f : 448.0f;

// Four integers as INT8, saturated, the first in the lowest byte.
__device__ __forceinline__ uint32_t packS8(int32_t x0, int32_t x1, int32_t x2, int32_t x3) {
    uint32_t high, word;
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(x3), "r"(x2));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(x1), "r"(x0), "r"(high));
    return word;
}

// x * factor as eight bits each, rounded to nearest even and saturated; what is no number becomes 0.
template <Format kFormat>
__device__ __forceinline__ uint32_t toWord(float const (&x)[4], float factor) {
    if constexpr (kFormat == Format::kInt8) {
        return packS8(__float2int_rn(x[0] * factor), __float2int_rn(x[1] * factor), __float2int_rn(x[2] * factor),
                      __float2int_rn(x[3] * factor));
    } else {
        float four[4];
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            float const v = x[i] * factor;
            four[i] = v == v ? v : 0.0f;
        }
        return packE4m3(four[0], four[1], four[2], four[3]);
    }
}

// The same of any count.
template <Format kFormat, int32_t kCount>
__device__ __forceinline__ void toBytes(int8_t (&to)[kCount], float const (&x)[kCount], float factor) {
#pragma unroll
    for (int32_t i = 0; i < kCount; i += 4) {
        float four[4] = {};
#pragma unroll
        for (int32_t j = 0; j < 4 && i + j < kCount; ++j) four[j] = x[i + j];
        uint32_t const word = toWord<kFormat>(four, factor);
#pragma unroll
        for (int32_t j = 0; j < 4 && i + j < kCount; ++j) to[i + j] = static_cast<int8_t>(word >> 8 * j);
    }
}

// `f` with the format of that index as a constant.
template <class F>
Status withFormat(int32_t index, F&& f) {
    switch (index) {
        case 0: return f(std::integral_constant<Format, Format::kInt8>{});
        case 1: return f(std::integral_constant<Format, Format::kE4m3>{});
        default: return {"`format` must be int8 or e4m3"};
    }
}

}  // namespace turbo
