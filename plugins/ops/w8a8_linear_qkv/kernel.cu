// yq, yk, yv = (q * s) @ (w * ws)^T + bias, rounded to T: three linears of the same rows in one launch.
#include "../common/cuda/w8a8.cuh"

namespace turbo {
namespace {

constexpr int32_t kThree = 3;

template <class T>
struct Store : w8a8::NothingAhead {
    static constexpr int32_t kLinears = kThree;
    w8a8::Weights weights[kThree];
    T* y[kThree];  // [m, n] each
    bool wide;     // rows are aligned to 16 bytes

    __device__ w8a8::Operands operands(w8a8::Operands x, int32_t linear) const {
        x.weights = w8a8::pick(linear, weights);
        return x;
    }

    template <class Tile>
    __device__ void operator()(Tile& tile, w8a8::Operands const& x) const {
        constexpr int32_t kWidth = Tile::template kRun<T>;
        T* const to = w8a8::pick(tile.at.linear, y);
        tile.template forEachRun<kWidth>([&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth]) {
            w8a8::addBias<Tile::kWide>(values, x, column, valid);
            alignas(16) T out[kWidth];
#pragma unroll
            for (int32_t i = 0; i < kWidth; ++i) out[i] = static_cast<T>(values[i]);
            w8a8::store(to + static_cast<int64_t>(row) * x.n + column, out, valid, Tile::kWide || wide);
        });
    }
};

template <Format kFormat, class T>
Status launchAs(Call const& call, cudaStream_t stream) {
    w8a8::Operands x = w8a8::operands(call, false);
    Store<T> store{};
    store.wide = true;
    for (int32_t i = 0; i < kThree; ++i) {
        store.weights[i] = w8a8::weights(call, TurboW8A8LinearQkv::kInWq + 3 * i);
        store.y[i] = static_cast<T*>(call.out[i].data);
        x.wideBias = x.wideBias && w8a8::aligned(store.weights[i].bias, 4);
        x.wideWeights = x.wideWeights && w8a8::aligned(store.weights[i].w, x.k);
        store.wide = store.wide && w8a8::aligned(store.y[i], x.n);
    }
    return w8a8::launchKernel<kFormat, sizeof(T) == 2>(x, store, stream);
}

}  // namespace

Status prepare(TurboW8A8LinearQkv::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
    int32_t const dtype = attrs.dtype.index;
    if (dtype < 0 || dtype > 2) return {"`dtype` must be f32, bf16 or f16"};
    for (int32_t i = 0; i < kThree; ++i) {
        if (call.out[i].type != kTypes[dtype]) return {"`yq`, `yk` and `yv` must be of the type that `dtype` says"};
    }
    return w8a8::check(call, kThree);
}

Status launch(TurboW8A8LinearQkv::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    return withFormat(attrs.format.index, [&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        switch (attrs.dtype.index) {
            case 0: return launchAs<kFormat, float>(call, stream);
            case 1: return launchAs<kFormat, __nv_bfloat16>(call, stream);
            default: return launchAs<kFormat, __half>(call, stream);
        }
    });
}

}  // namespace turbo
