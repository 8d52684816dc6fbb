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

// x * factor as eight bits, rounded to nearest even and saturated; what is no number becomes 0.
template <Format kFormat, int32_t kCount>
__device__ __forceinline__ void toBytes(int8_t (&to)[kCount], float const (&x)[kCount], float factor) {
    if constexpr (kFormat == Format::kInt8) {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) {
            to[i] = static_cast<int8_t>(max(-128, min(127, __float2int_rn(x[i] * factor))));
        }
    } else {
#pragma unroll
        for (int32_t i = 0; i < kCount; i += 4) {
            float four[4] = {};
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                if (i + j >= kCount) continue;
                float const v = x[i + j] * factor;
                four[j] = v == v ? v : 0.0f;
            }
            uint32_t const word = packE4m3(four[0], four[1], four[2], four[3]);
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) {
                if (i + j < kCount) to[i + j] = static_cast<int8_t>(word >> 8 * j);
            }
        }
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
