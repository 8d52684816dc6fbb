// E4M3: four values to a word, and the product of fragments of 16 x 32 and 32 x 8 (PTX ISA, "Warp-level matrix
// instructions"), on GPUs without it through f16.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace turbo {

// c += a b of f16, depth 16.
__device__ inline void mmaHalf(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if __CUDA_ARCH__ >= 890

// Four floats as E4M3, rounded to nearest even and saturated, the first in the lowest byte.
__device__ inline uint32_t packE4m3(float x0, float x1, float x2, float x3) {
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x1), "f"(x0));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x3), "f"(x2));
    return low | static_cast<uint32_t>(high) << 16;
}

// c += a b of E4M3, depth 32.
__device__ inline void mmaE4m3(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

// Without E4M3 instructions: an f16 shifted right by seven bits is an E4M3 of 2^8 times its value, subnormals
// included. Products of E4M3 values are exact in f16 multiplication with f32 sums.

__device__ inline uint32_t e4m3(float x) {
    float const a = fminf(fabsf(x), 448.0f);
    // One unit in the last place of this power of two is one step of E4M3 at `a`, so adding it rounds.
    uint32_t const power = __float_as_uint(fmaxf(a, 0x1p-6f)) & 0x7f800000u;
    float const magic = __uint_as_float(power + (20u << 23));
    __half const h = __float2half_rn(((a + magic) - magic) * 0x1p-8f);
    return __half_as_ushort(h) >> 7 | (__float_as_uint(x) >> 24 & 0x80u);
}

__device__ inline uint32_t packE4m3(float x0, float x1, float x2, float x3) {
    return e4m3(x0) | e4m3(x1) << 8 | e4m3(x2) << 16 | e4m3(x3) << 24;
}

// Bytes 0 and 1, or 2 and 3, as two f16.
__device__ inline uint32_t widenE4m3(uint32_t x, bool high) {
    uint32_t const spread = __byte_perm(x, 0, high ? 0x3424 : 0x1404);
    uint32_t bits = (spread & 0x80008000u) | (spread >> 1 & 0x3f803f80u);
    // The largest exponent and mantissa are no number.
    bits |= __vcmpeq2(bits & 0x3f803f80u, 0x3f803f80u) & 0x7c007c00u;
    __half2 const y = __hmul2(*reinterpret_cast<__half2 const*>(&bits), __float2half2_rn(256.0f));
    return *reinterpret_cast<uint32_t const*>(&y);
}

__device__ inline void mmaE4m3(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t const first[4] = {widenE4m3(a[0], false), widenE4m3(a[1], false), widenE4m3(a[0], true),
                               widenE4m3(a[1], true)};
    uint32_t const second[4] = {widenE4m3(a[2], false), widenE4m3(a[3], false), widenE4m3(a[2], true),
                                widenE4m3(a[3], true)};
    mmaHalf(c, first, widenE4m3(b0, false), widenE4m3(b0, true));
    mmaHalf(c, second, widenE4m3(b1, false), widenE4m3(b1, true));
}

#endif

}  // namespace turbo
