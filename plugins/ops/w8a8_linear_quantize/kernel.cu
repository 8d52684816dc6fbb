// yq, ys = quantize(activation((q * s) @ (w * ws)^T + bias)): an epilogue's tile of outputs, or the two of a cluster, is one
// block of them.
#include "../common/cuda/w8a8.cuh"

namespace turbo {
namespace {

template <Format kFormat>
struct Quantize : w8a8::NothingAhead {
    static constexpr bool kWholeBlocks = true;
    int8_t* q;  // [m, n]
    float* s;   // [ceil(m/128), ceil(n/128)]
    bool wide;  // rows of q are aligned to 16 bytes

    template <class Tile>
    __device__ void operator()(Tile& tile, w8a8::Operands const& x) const {
        constexpr int32_t kWidth = Tile::template kRun<int8_t>;
        float amax = 1e-8f;
        tile.template change<kWidth>([&](int32_t, int32_t column, int32_t valid, float (&values)[kWidth]) {
            w8a8::addBias<Tile::kWide>(values, x, column, valid);
            if (x.gelu) w8a8::geluTanhForBytes(values);
#pragma unroll
            for (int32_t i = 0; i < kWidth; ++i) {
                if (i < valid) amax = fmaxf(amax, fabsf(values[i]));
            }
        });
        amax = tile.maximum(amax);
        if (tile.isFirst()) {
            int64_t const blocks = (x.n - 1) / w8a8::kBlock + 1;
            s[tile.at.row / w8a8::kBlock * blocks + tile.at.column / w8a8::kBlock] = __fdiv_rn(amax, kTop<kFormat>);
        }

        float const factor = __fdiv_rn(kTop<kFormat>, amax);
        tile.template forEachRun<kWidth>(
            [&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth]) {
                alignas(16) int8_t out[kWidth];
                toBytes<kFormat>(out, values, factor);
                w8a8::store(q + static_cast<int64_t>(row) * x.n + column, out, valid, Tile::kWide || wide);
            });
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
    bool const wide = w8a8::aligned(q, x.n);
    return withFormat(attrs.format.index, [&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        return w8a8::launchKernel<kFormat, true>(x, Quantize<kFormat>{{}, q, s, wide}, stream);
    });
}

}  // namespace turbo
