// What the kernels of a W8A8 linear share: operands, and what an epilogue does with a tile of outputs.
//
// acc = fma(sum, s * ws, acc) over blocks of 128 along K in ascending order. Sums of INT8 are exact: whichever kernel
// computes a tile, the result is the one of `plugins/ops/common/w8a8.rs`.
//
// An epilogue is called by all threads of a tile, as `epilogue(tile, operands)`, with a Tile that has
//   kWide                  whether all runs are whole, and aligned to 16 bytes wherever they come from and go to
//   kRun<T>                a width of runs that suits outputs of type T
//   forEachRun<kWidth>(visit)
//                          calls `visit(row, column, valid, values)` for this thread's runs of `kWidth` outputs, the
//                          same in every call: place in the whole, outputs that exist, float(&)[kWidth]. If none
//                          do, the row is another one's
//   change<kWidth>(visit)  the same, and keeps what `visit` makes of the values
//   maximum(value)         the greatest value of the tile's threads; where CTAs of a cluster share a block, of the block's.
//                          Once in an epilogue
//   isFirst()              whether this is the first of those threads
//
// Before the products, `prefetch(place, n, row)` asks L2 for what the epilogue is going to read of a row of the tile.
//
// An epilogue may need kWholeBlocks of outputs at a time, 128 x 128, and it says whether it kReadsMore than a bias. It may
// serve kLinears linears of the same rows and sizes in one launch: `operands(x, i)` are those of one of them, and
// `weights[i]` its weights, for the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "format.cuh"
#include "tile.cuh"

namespace turbo::w8a8 {

// Tiles are made of blocks of the scales, or are half of one: rows that are multiplied together have one scale.
using tile::kBlock;
using tile::aligned, tile::checkSizes, tile::geluTanh, tile::geluTanhForBytes;
using tile::load, tile::Place, tile::place, tile::store;

struct Weights {
    int8_t const* w;    // [n, k]
    float const* ws;    // scales [ceil(n/128), ceil(k/128)]
    float const* bias;  // [n]
};

struct Operands {
    int8_t const* q;  // activations [m, k]
    float const* s;   // scales [ceil(m/128), ceil(k/128)]
    Weights weights;
    int32_t m, n, k;
    bool gelu;         // the tanh GELU follows the bias
    bool wideBias;     // the bias begins at a multiple of 16 bytes, and
    bool wideWeights;  // so do rows of weights, of all linears of a launch
};

// One of an array of kernel arguments, which an index would first copy to memory.
template <class T, int32_t kCount>
__device__ __forceinline__ T pick(int32_t index, T const (&all)[kCount]) {
    T one = all[0];
#pragma unroll
    for (int32_t i = 1; i < kCount; ++i) {
        if (index == i) one = all[i];
    }
    return one;
}

// Of epilogues that serve one linear.
struct OneLinear {
    static constexpr int32_t kLinears = 1;
    static constexpr bool kWholeBlocks = false;
    static constexpr bool kReadsMore = true;
    __device__ static Operands const& operands(Operands const& x, int32_t) { return x; }
};

// Of epilogues that read no more than a bias.
struct NothingAhead : OneLinear {
    static constexpr bool kReadsMore = false;
    __device__ void prefetch(Place const&, int32_t, int32_t) const {}
};

// Adds the bias to a run at column `column` of the whole.
template <bool kWide, int32_t kWidth>
__device__ __forceinline__ void addBias(float (&y)[kWidth], Operands const& x, int32_t column, int32_t valid) {
    float bias[kWidth];
    load(bias, x.weights.bias + column, valid, kWide || (x.wideBias && valid == kWidth));
#pragma unroll
    for (int32_t i = 0; i < kWidth; ++i) y[i] += bias[i];
}

// The same, and applies the activation.
template <bool kWide, int32_t kWidth>
__device__ __forceinline__ void finish(float (&y)[kWidth], Operands const& x, int32_t column, int32_t valid) {
    addBias<kWide>(y, x, column, valid);
    if (x.gelu) geluTanh(y);
}

}  // namespace turbo::w8a8
