// y = residual + gate * ((q * s) @ (w * ws)^T + bias), in f32, rounded to T.
#include "../common/cuda/w8a8.cuh"

namespace turbo {
namespace {

template <class T>
struct Residual : w8a8::OneLinear {
    T const* residual;  // [m, n]
    float const* gate;  // [g, n]
    T* y;               // [m, n]
    int32_t group;      // rows that share a row of the gate
    bool wide;          // rows of the residual, of y and of the gate are aligned to 16 bytes

    __device__ void prefetch(w8a8::Place const& at, int32_t n, int32_t row) const {
        constexpr int32_t kLine = 128 / static_cast<int32_t>(sizeof(T));
        if (row >= at.rows) return;
        T const* const from = residual + static_cast<int64_t>(at.row + row) * n + at.column;
        for (int32_t i = 0; i < w8a8::kBlock; i += kLine) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
    }

    template <class Tile>
    __device__ void operator()(Tile& tile, w8a8::Operands const& x) const {
        constexpr int32_t kWidth = Tile::template kRun<T>;
        // With `gateOf(row)`, the row of the gate.
        auto const add = [&](auto gateOf) {
            tile.template forEachRun<kWidth>([&](int32_t row, int32_t column, int32_t valid, float (&values)[kWidth]) {
                int64_t const at = static_cast<int64_t>(row) * x.n + column;
                float base[kWidth], factor[kWidth];
                w8a8::load(base, residual + at, valid, Tile::kWide || wide);
                w8a8::load(
                    factor, gate + static_cast<int64_t>(gateOf(row)) * x.n + column, valid, Tile::kWide || wide);
                w8a8::addBias<Tile::kWide>(values, x, column, valid);
                alignas(16) T out[kWidth];
#pragma unroll
                for (int32_t i = 0; i < kWidth; ++i) out[i] = static_cast<T>(fmaf(factor[i], values[i], base[i]));
                w8a8::store(y + at, out, valid, Tile::kWide || wide);
            });
        };
        // Nearly always all rows have one gate, and a quotient for each costs more than the sum.
        int32_t const first = tile.at.row / group;
        if ((tile.at.row + tile.at.rows - 1) / group == first) {
            add([=](int32_t) { return first; });
        } else {
            add([this](int32_t row) { return row / group; });
        }
    }
};

template <Format kFormat, class T>
Status launchAs(w8a8::Operands const& x, Call const& call, cudaStream_t stream) {
    using Op = TurboW8A8LinearResidual;
    auto const* const residual = static_cast<T const*>(call.in[Op::kInResidual].data);
    auto const* const gate = static_cast<float const*>(call.in[Op::kInGate].data);
    auto* const y = static_cast<T*>(call.out[Op::kOutY].data);
    bool const wide = w8a8::aligned(residual, x.n) && w8a8::aligned(gate, x.n) && w8a8::aligned(y, x.n);
    auto const group = static_cast<int32_t>(x.m / call.in[Op::kInGate].dim[0]);
    return w8a8::launchKernel<kFormat, sizeof(T) == 2>(x, Residual<T>{{}, residual, gate, y, group, wide}, stream);
}

}  // namespace

Status prepare(TurboW8A8LinearResidual::Attrs const&, Call const& call, size_t* bytes) {
    using Op = TurboW8A8LinearResidual;
    *bytes = 0;
    DType const type = call.in[Op::kInResidual].type;
    int64_t const groups = call.in[Op::kInGate].dim[0];
    if (type != DType::kF32 && type != DType::kBF16 && type != DType::kF16) {
        return {"`residual` must be f32, bf16 or f16"};
    }
    if (call.out[Op::kOutY].type != type) return {"`y` must be of the type of `residual`"};
    if (groups < 1 || call.in[Op::kInQ].dim[0] % groups != 0) {
        return {"axis `g` of `gate` must divide the rows of `q`"};
    }
    return w8a8::check(call);
}

Status launch(TurboW8A8LinearResidual::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    w8a8::Operands const x = w8a8::operands(call, false);
    return withFormat(attrs.format.index, [&](auto format) {
        constexpr Format kFormat = decltype(format)::value;
        switch (call.in[TurboW8A8LinearResidual::kInResidual].type) {
            case DType::kF32: return launchAs<kFormat, float>(x, call, stream);
            case DType::kBF16: return launchAs<kFormat, __nv_bfloat16>(x, call, stream);
            default: return launchAs<kFormat, __half>(x, call, stream);
        }
    });
}

}  // namespace turbo
