// y = activation((q * s) @ (w * ws)^T + bias), rounded to T.
#include "../common/cuda/w8a8.cuh"

namespace turbo {
namespace {

template <class T>
struct Store : w8a8::NothingAhead {
    T* y;       // [m, n]
    bool wide;  // rows are aligned to 16 bytes

    template <class Tile>
    __device__ void operator()(Tile& tile, w8a8::Operands const& x) const {
        constexpr int32_t kWidth = Tile::template kRun<T>;
        tile.template forEachRun<kWidth>(
            [&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth]) {
                w8a8::finish<Tile::kWide>(values, x, column, valid);
                alignas(16) T out[kWidth];
#pragma unroll
                for (int32_t i = 0; i < kWidth; ++i) out[i] = static_cast<T>(values[i]);
                w8a8::store(y + static_cast<int64_t>(row) * x.n + column, out, valid, Tile::kWide || wide);
            });
    }
};

template <Format kFormat, class T>
Status launchAs(w8a8::Operands const& x, void* data, cudaStream_t stream) {
    auto* const y = static_cast<T*>(data);
    return w8a8::launchKernel<kFormat, sizeof(T) == 2>(x, Store<T>{{}, y, w8a8::aligned(y, x.n)}, stream);
}

}  // namespace

Status prepare(TurboW8A8Linear::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
    int32_t const activation = attrs.activation.index;
    if (activation != 0 && activation != 1) return {"`activation` must be none or gelu_tanh"};
    int32_t const dtype = attrs.dtype.index;
    if (dtype < 0 || dtype > 2) return {"`dtype` must be f32, bf16 or f16"};
    if (call.out[0].type != kTypes[dtype]) return {"`y` must be of the type that `dtype` says"};
    return w8a8::check(call);
}

Status launch(TurboW8A8Linear::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    w8a8::Operands const x = w8a8::operands(call, attrs.activation.index == 1);
    void* const y = call.out[0].data;
    return withFormat(attrs.format.index, [&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        switch (attrs.dtype.index) {
            case 0: return launchAs<kFormat, float>(x, y, stream);
            case 1: return launchAs<kFormat, __nv_bfloat16>(x, y, stream);
            default: return launchAs<kFormat, __half>(x, y, stream);
        }
    });
}

}  // namespace turbo
