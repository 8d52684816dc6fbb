// Layer and RMS normalisation: a row `[c]` of `[m, c]` is read once and held in registers, of a warp where it fits and
// of a CTA otherwise. The mean comes first, then the sum of squared differences from it, both in f32.
#pragma once

#include "elements.cuh"

namespace turbo {

constexpr int32_t kRowThreadsMax = 512;
constexpr int32_t kHeldMax = 32;
constexpr int32_t kWidthMax = kRowThreadsMax * kHeldMax;

struct Moments {
    float mean;    // 0 for RMS
    float factor;  // 1 / sqrt(variance or mean square + eps)
};

struct NormKind {
    bool layer;
    float eps;
};

__device__ __forceinline__ float normalize(float x, Moments const& moments, float scale, float shift) {
    return fmaf((x - moments.mean) * moments.factor, scale, shift);
}

// One row over the threads of a CTA, `kHeld` elements each, in vectors of `kLanes`; neighbours hold
// neighbouring vectors. The width must be a multiple of `kLanes`.
template <class T, int32_t kLanes, bool wide, int32_t kHeld>
struct Row {
    using Element = T;
    static constexpr int32_t kVector = kLanes;
    static constexpr int32_t kElements = kHeld;
    static constexpr int32_t kWidest = kRowThreadsMax * kHeld;
    static constexpr bool kWideAccess = wide;

    static constexpr int32_t kThreadsMax = kRowThreadsMax, kCtasMin = 0;  // left to the compiler

    float x[kHeld / kLanes][kLanes];

    static uint32_t ctas(int64_t rows) { return static_cast<uint32_t>(rows); }

    static int32_t threads(int64_t width) {
        return static_cast<int32_t>(ceilDiv(width, kHeld * kWarp)) * kWarp;
    }

    static __device__ __forceinline__ int32_t index() { return static_cast<int32_t>(blockIdx.x); }

    static __device__ __forceinline__ bool isFirst() { return threadIdx.x == 0; }

    // Calls `visit(vector, its first column)` for what the thread holds.
    template <class Visit>
    __device__ __forceinline__ void forEach(int32_t width, Visit visit) {
#pragma unroll
        for (int32_t i = 0; i < kHeld / kLanes; ++i) {
            int32_t const column = static_cast<int32_t>(i * blockDim.x + threadIdx.x) * kLanes;
            if (column < width) visit(x[i], column);
        }
    }

    __device__ __forceinline__ void read(T const* row, int32_t width) {
        forEach(width, [&](float (&v)[kLanes], int32_t column) { load<wide>(v, row + column); });
    }

    // Once in a kernel.
    __device__ __forceinline__ Moments moments(int32_t width, NormKind kind) {
        __shared__ float partial[2][kWarpsMax];
        float const count = static_cast<float>(width);
        float mean = 0.0f, sum = 0.0f, squares = 0.0f;
        if (kind.layer) {
            forEach(width, [&](float (&v)[kLanes], int32_t) {
#pragma unroll
                for (int32_t i = 0; i < kLanes; ++i) sum += v[i];
            });
            mean = blockSum(sum, partial[0]) / count;
        }
        forEach(width, [&](float (&v)[kLanes], int32_t) {
#pragma unroll
            for (int32_t i = 0; i < kLanes; ++i) squares = fmaf(v[i] - mean, v[i] - mean, squares);
        });
        return {mean, __frsqrt_rn(blockSum(squares, partial[1]) / count + kind.eps)};
    }
};

// One row over the lanes of a warp, in up to kCount vectors each, as it came: no other warp has to be waited for, and
// more rows are on their way at a time. The width must be a multiple of a vector.
template <class T>
struct WarpRow {
    static_assert(sizeof(T) == 2);
    using Element = T;
    static constexpr int32_t kVector = kWide<T>;
    static constexpr bool kWideAccess = true;
    static constexpr int32_t kCount = 6;
    static constexpr int32_t kWidest = kCount * kWarp * kVector;
    static constexpr int32_t kWarps = 4;  // of a CTA, a row each
    static constexpr int32_t kThreadsMax = kWarps * kWarp, kCtasMin = 8;

    Pack<T, kVector> x[kCount];

    static uint32_t ctas(int64_t rows) { return static_cast<uint32_t>(ceilDiv(rows, kWarps)); }

    static int32_t threads(int64_t) { return kThreadsMax; }

    static __device__ __forceinline__ int32_t index() {
        return static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / kWarp);
    }

    static __device__ __forceinline__ bool isFirst() { return threadIdx.x % kWarp == 0; }

    // Calls `visit(vector, its first column)` for what the lane holds.
    template <class Visit>
    __device__ __forceinline__ void forEach(int32_t width, Visit visit) {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) {
            int32_t const column = (i * kWarp + static_cast<int32_t>(threadIdx.x) % kWarp) * kVector;
            if (column >= width) continue;
            keepPacked(x[i]);
            float v[kVector];
#pragma unroll
            for (int32_t j = 0; j < kVector; ++j) v[j] = static_cast<float>(x[i].at[j]);
            visit(v, column);
        }
    }

    __device__ __forceinline__ void read(T const* row, int32_t width) {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) {
            int32_t const column = (i * kWarp + static_cast<int32_t>(threadIdx.x) % kWarp) * kVector;
            if (column < width) load<true>(x[i], row + column);
        }
    }

    __device__ __forceinline__ Moments moments(int32_t width, NormKind kind) {
        float const count = static_cast<float>(width);
        float mean = 0.0f, sum = 0.0f, squares = 0.0f;
        if (kind.layer) {
            forEach(width, [&](float (&v)[kVector], int32_t) {
#pragma unroll
                for (int32_t i = 0; i < kVector; ++i) sum += v[i];
            });
            mean = warpSum(sum) / count;
        }
        forEach(width, [&](float (&v)[kVector], int32_t) {
#pragma unroll
            for (int32_t i = 0; i < kVector; ++i) squares = fmaf(v[i] - mean, v[i] - mean, squares);
        });
        return {mean, __frsqrt_rn(warpSum(squares) / count + kind.eps)};
    }
};

// `launch` with the tag of what holds a row of the width; vectors that are not wide have `kNarrow` elements.
template <int32_t kNarrow, class Launch>
Status withRow(DType type, bool wide, int64_t width, Launch&& launch) {
    return withAccess(type, wide, [&](auto tag, auto access) {
        using T = typename decltype(tag)::Type;
        constexpr bool kAccess = decltype(access)::value;
        constexpr int32_t kLanes = kAccess ? kWide<T> : kNarrow;
        if constexpr (kAccess && sizeof(T) == 2) {
            if (width <= WarpRow<T>::kWidest) return launch(Tag<WarpRow<T>>{});
        }
        if (width <= kRowThreadsMax * 8) return launch(Tag<Row<T, kLanes, kAccess, 8>>{});
        if (width <= kRowThreadsMax * 16) return launch(Tag<Row<T, kLanes, kAccess, 16>>{});
        return launch(Tag<Row<T, kLanes, kAccess, kHeldMax>>{});
    });
}

// What every norm kernel expects of `x [m, c]`.
inline Status checkRows(Tensor const& x) {
    if (x.dim[1] > kWidthMax) return {"axis `c` of `x` must be at most 16384"};
    if (x.dim[0] > INT32_MAX) return {"`x` must have fewer than 2^31 rows"};
    return {};
}

// Rows of `x` that share a row of `scale [g, c]`.
inline int32_t rowsOfGroup(Tensor const& x, Tensor const& scale) {
    return static_cast<int32_t>(x.dim[0] / scale.dim[0]);
}

inline Status checkGroups(Tensor const& x, Tensor const& scale) {
    if (scale.dim[0] < 1 || x.dim[0] % scale.dim[0] != 0) {
        return {"axis `g` of `scale` must divide the rows of `x`"};
    }
    return {};
}

}  // namespace turbo
