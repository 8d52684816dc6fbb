// What the kernels of the linear share: its operands, and what becomes of the sums.
#pragma once

#include "../common/cuda/tile.cuh"

namespace turbo::linear {

using tile::Place;

constexpr int32_t kRun = 8;  // neighbouring outputs that a thread finishes and stores together

template <class T>
struct Operands {
    T const* x;     // activations [m, k]
    T const* w;     // weights [n, k]
    T const* bias;  // [n]
    T* y;           // outputs [m, n]
    int32_t m, n, k;
    bool gelu;      // the tanh GELU follows the bias
    bool wide;      // rows of y, and the bias, are aligned to 16 bytes
};

// The bias of a run at `column`, of whose outputs `valid` exist; with kWide all of them do, in wide rows.
template <bool kWide, class T>
__device__ __forceinline__ void loadBias(float (&bias)[kRun], Operands<T> const& x, int32_t column, int32_t valid) {
    tile::load(bias, x.bias + column, valid, kWide || x.wide);
}

// Finishes and stores a run of sums.
template <bool kWide, class T>
__device__ __forceinline__ void finish(Operands<T> const& x, float (&y)[kRun], float const (&bias)[kRun], int32_t row,
                                       int32_t column, int32_t valid) {
#pragma unroll
    for (int32_t i = 0; i < kRun; ++i) y[i] += bias[i];
    if (x.gelu) tile::geluTanh(y);
    alignas(16) T out[kRun];
#pragma unroll
    for (int32_t i = 0; i < kRun; ++i) out[i] = static_cast<T>(y[i]);
    tile::store(x.y + static_cast<int64_t>(row) * x.n + column, out, valid, kWide || x.wide);
}

}  // namespace turbo::linear
