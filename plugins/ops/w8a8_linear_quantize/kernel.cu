// yq, ys = quantize(activation((q * s) @ (w * ws)^T + bias)): a CTA's tile of outputs is one block of them.
#include "../common/cuda/w8a8.cuh"

namespace turbo {
namespace {

struct Quantize {
    int8_t* q;  // [m, n]
    float* s;   // [ceil(m/128), ceil(n/128)]
    bool wide;  // rows of q are aligned to 16 bytes

    __device__ void operator()(w8a8::Tile const& tile, w8a8::Operands const& x) const {
        constexpr int32_t kWidth = 16;
        float amax = 1e-8f;
        w8a8::forEachRun<kWidth>(tile, [&](int32_t, int32_t column, int32_t valid, float* at) {
            float values[kWidth];
            w8a8::load(values, at, kWidth, true);
            w8a8::finish(values, x, tile.column + column, valid);
#pragma unroll
            for (int32_t i = 0; i < kWidth; ++i) {
                if (i < valid) amax = fmaxf(amax, fabsf(values[i]));
                at[i] = values[i];
            }
        });
        amax = maximum(tile, amax);
        if (threadIdx.x == 0) {
            int64_t const blocks = (x.n - 1) / w8a8::kTile + 1;
            s[tile.row / w8a8::kTile * blocks + tile.column / w8a8::kTile] = amax / 128.0f;
        }

        float const factor = __fdiv_rn(128.0f, amax);
        w8a8::forEachRun<kWidth>(tile, [&](int32_t row, int32_t column, int32_t valid, float const* from) {
            float values[kWidth];
            w8a8::load(values, from, kWidth, true);
            alignas(16) int8_t out[kWidth];
#pragma unroll
            for (int32_t i = 0; i < kWidth; ++i) {
                out[i] = static_cast<int8_t>(max(-128, min(127, __float2int_rn(values[i] * factor))));
            }
            int64_t const at = static_cast<int64_t>(tile.row + row) * x.n + tile.column + column;
            w8a8::store(q + at, out, valid, wide);
        });
    }

    // The greatest `value` of the CTA's threads.
    static __device__ float maximum(w8a8::Tile const& tile, float value) {
#pragma unroll
        for (int32_t lanes = 16; lanes > 0; lanes /= 2) {
            value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lanes));
        }
        if (threadIdx.x % 32 == 0) tile.scratch[threadIdx.x / 32] = value;
        __syncthreads();
#pragma unroll
        for (int32_t warp = 0; warp < w8a8::kWarps; ++warp) value = fmaxf(value, tile.scratch[warp]);
        return value;
    }
};

}  // namespace

Status prepare(TurboW8A8LinearQuantize::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    int32_t const activation = attrs.activation.index;
    if (activation != 0 && activation != 1) return {"`activation` must be none or gelu_tanh"};
    return w8a8::check(call);
}

Status launch(TurboW8A8LinearQuantize::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    w8a8::Operands const x = w8a8::operands(call, attrs.activation.index == 1);
    auto* const q = static_cast<int8_t*>(call.out[0].data);
    auto* const s = static_cast<float*>(call.out[1].data);
    return w8a8::launchKernel(x, Quantize{q, s, w8a8::aligned(q, x.n)}, stream);
}

}  // namespace turbo
