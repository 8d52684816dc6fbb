// What the kernels of all linears share: where a tile of outputs lies, and runs of values on their way from and to
// memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "op.h"

namespace turbo::tile {

constexpr int32_t kBlock = 128;      // columns of a tile
constexpr int32_t kFewestRows = 64;  // of a tile; its rows divide kRaster
constexpr int32_t kRaster = 2048;    // rows that CTAs sweep together

// Where a tile lies in the whole.
struct Place {
    int32_t row, column;    // first ones
    int32_t rows, columns;  // how many exist, up to the tile's
    int32_t linear;         // which one's outputs they are, where a launch has several
};

// Tiles of kRows by kBlock, where each of kLinears linears has outputs of `x.m` by `x.n`.
template <int32_t kRows, int32_t kLinears, class Sizes>
__host__ __device__ constexpr int32_t count(Sizes const& x) {
    return ((x.m - 1) / kRows + 1) * ((x.n - 1) / kBlock + 1) * kLinears;
}

// The tile number `id` of them. Those that run together take kRaster rows and as many columns as there are CTAs for: a
// square of the outputs reads the fewest bytes, and L2 holds them.
template <int32_t kRows, int32_t kLinears = 1, class Sizes>
__host__ __device__ constexpr Place place(Sizes const& x, int32_t id) {
    auto const least = [](int32_t a, int32_t b) { return a < b ? a : b; };
    constexpr int32_t kSwept = kRaster / kRows;
    int32_t const tilesM = (x.m - 1) / kRows + 1;
    int32_t const tilesN = (x.n - 1) / kBlock + 1;
    int32_t const across = tilesN * kLinears;
    int32_t const first = id / across / kSwept * kSwept;
    int32_t const height = least(kSwept, tilesM - first);
    int32_t const within = id - first * across;
    int32_t const row = (first + within % height) * kRows;
    int32_t const linear = kLinears == 1 ? 0 : within / height / tilesN;
    int32_t const column = (within / height - linear * tilesN) * kBlock;
    return {row, column, least(kRows, x.m - row), least(kBlock, x.n - column), linear};
}

// Whether every output of every linear is in one tile.
template <int32_t kRows, int32_t kLinears>
constexpr bool coversOnce(int32_t m, int32_t n) {
    struct {
        int32_t m, n;
    } const x{m, n};
    bool seen[1024] = {};
    int64_t outputs = 0;
    int32_t const tiles = count<kRows, kLinears>(x);
    if (tiles > 1024) return false;
    for (int32_t id = 0; id < tiles; ++id) {
        Place const at = place<kRows, kLinears>(x, id);
        int32_t const across = (n - 1) / kBlock + 1;
        int32_t const tile = (at.row / kRows * kLinears + at.linear) * across + at.column / kBlock;
        if (at.row % kRows != 0 || at.column % kBlock != 0 || tile < 0 || tile >= tiles || seen[tile]) return false;
        seen[tile] = true;
        outputs += int64_t{at.rows} * at.columns;
    }
    return outputs == int64_t{m} * n * kLinears;
}
static_assert(coversOnce<64, 1>(4100, 130) && coversOnce<64, 3>(4100, 130) && coversOnce<128, 3>(2048, 256));
static_assert(coversOnce<256, 1>(2049, 384) && coversOnce<256, 3>(2049, 384) && coversOnce<128, 1>(1, 1));

// Reads `valid` values that nothing writes meanwhile; the others become zeros. With `wide` it reads all, which must
// exist and be aligned to 16 bytes.
template <int32_t kCount, class T>
__device__ __forceinline__ void load(float (&to)[kCount], T const* from, int32_t valid, bool wide) {
    alignas(16) T values[kCount];
    if (wide) {
#pragma unroll
        for (int32_t i = 0; i < kCount * static_cast<int32_t>(sizeof(T)) / 16; ++i) {
            reinterpret_cast<uint4*>(values)[i] = __ldg(reinterpret_cast<uint4 const*>(from) + i);
        }
    } else {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) values[i] = i < valid ? from[i] : static_cast<T>(0.0f);
    }
#pragma unroll
    for (int32_t i = 0; i < kCount; ++i) to[i] = static_cast<float>(values[i]);
}

// Writes the first `valid` of 8 or 16 bytes of values, which with `wide` are all or none, aligned to as many bytes.
template <int32_t kCount, class T>
__device__ __forceinline__ void store(T* to, T const (&values)[kCount], int32_t valid, bool wide) {
    static_assert(kCount * sizeof(T) == 16 || kCount * sizeof(T) == 8);
    using Word = std::conditional_t<kCount * sizeof(T) == 16, uint4, uint2>;
    if (wide) {
        if (valid > 0) *reinterpret_cast<Word*>(to) = *reinterpret_cast<Word const*>(values);
    } else {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) {
            if (i < valid) to[i] = values[i];
        }
    }
}

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + exp(-2 u)): no difference of nearly
// equal numbers where x is negative. Exponentials and reciprocals are slow, so four values share a reciprocal; for their
// product to be finite, exponentials end at 2^30, where results are as good as 0 beside x.
template <int32_t kCount>
__device__ __forceinline__ void geluTanh(float (&x)[kCount]) {
    static_assert(kCount % 4 == 0);
    constexpr float kFactor = -2.0f * 0.7978845608028654f * 1.4426950408889634f;  // -2 sqrt(2 / pi) log2(e)
#pragma unroll
    for (int32_t i = 0; i < kCount; i += 4) {
        float power[4];
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
            float const y = x[i + j], u = y * fmaf(0.044715f * kFactor, y * y, kFactor);
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power[j]) : "f"(fminf(u, 30.0f)));
            power[j] += 1.0f;
        }
        float const first = power[0] * power[1], second = power[2] * power[3];
        float rest;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(rest) : "f"(first * second));
        float const ofFirst = rest * second, ofSecond = rest * first;
        x[i] *= ofFirst * power[1];
        x[i + 1] *= ofFirst * power[0];
        x[i + 2] *= ofSecond * power[3];
        x[i + 3] *= ofSecond * power[2];
    }
}

// The same with the GPU's own tanh, which is good to 2^-11, for results that eight bits are to hold: it is off by at most
// 2^-12 of the largest of a block, which is 1/32 of a step of INT8.
template <int32_t kCount>
__device__ __forceinline__ void geluTanhForBytes(float (&x)[kCount]) {
    constexpr float kFactor = 0.7978845608028654f;  // sqrt(2 / pi)
#pragma unroll
    for (float& y : x) {
        float tanh;
        asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(y * fmaf(0.044715f * kFactor, y * y, kFactor)));
        float const half = 0.5f * y;
        y = fmaf(half, tanh, half);
    }
}

// Whether the kernels take outputs of these sizes, of one linear or several.
inline Status checkSizes(int64_t m, int64_t n, int64_t linears = 1) {
    // Rounded up to whole tiles, sizes must remain int32.
    constexpr int64_t kMost = INT32_MAX - 3 * kBlock;
    if (m < 0 || m > kMost || n < 0 || n > kMost) return {"axes `m` and `n` must be below 2^31 - 384"};
    if (((m + kRaster) / kFewestRows + 1) * ((n + kBlock - 1) / kBlock) * linears > INT32_MAX) {
        return {"the outputs must have fewer than 2^31 tiles of 64 x 128"};
    }
    return {};
}

// Whether rows of `columns` elements from `data` on begin at multiples of 16 bytes.
template <class T>
bool aligned(T const* data, int64_t columns) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * sizeof(T) % 16 == 0;
}

}  // namespace turbo::tile
