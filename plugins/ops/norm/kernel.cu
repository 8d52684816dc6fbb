// y = norm(x) * scale + shift, rounded to T.
#include "../common/cuda/hopper.cuh"
#include "../common/cuda/norm.cuh"

namespace turbo {
namespace {

struct Arguments {
    void const* x;
    float const* scale;
    float const* shift;
    void* y;
    int32_t rows;
    int32_t width;
    int32_t rowsOfGroup;
    NormKind kind;
};

template <class R>
__global__ void __launch_bounds__(R::kThreadsMax, R::kCtasMin) normKernel(Arguments a) {
    using T = typename R::Element;
    constexpr bool kAccess = R::kWideAccess;
    followKernelAhead();
    int32_t const index = R::index();
    if (index >= a.rows) return;
    int64_t const at = static_cast<int64_t>(index) * a.width;
    int64_t const group = static_cast<int64_t>(index / a.rowsOfGroup) * a.width;
    R row;
    row.read(static_cast<T const*>(a.x) + at, a.width);
    Moments const moments = row.moments(a.width, a.kind);
    row.forEach(a.width, [&](float (&v)[R::kVector], int32_t column) {
        float scale[R::kVector], shift[R::kVector];
        load<kAccess>(scale, a.scale + group + column);
        load<kAccess>(shift, a.shift + group + column);
#pragma unroll
        for (int32_t i = 0; i < R::kVector; ++i) v[i] = normalize(v[i], moments, scale[i], shift[i]);
        store<kAccess>(static_cast<T*>(a.y) + at + column, v);
    });
}

}  // namespace

Status prepare(TurboNorm::Attrs const&, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& x = call.in[TurboNorm::kInX];
    Status const status = checkRows(x);
    return status.ok() ? checkGroups(x, call.in[TurboNorm::kInScale]) : status;
}

Status launch(TurboNorm::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    Tensor const& x = call.in[TurboNorm::kInX];
    Tensor const& scale = call.in[TurboNorm::kInScale];
    Tensor const& shift = call.in[TurboNorm::kInShift];
    Tensor const& y = call.out[TurboNorm::kOutY];
    if (x.count() == 0) return {};
    int64_t const rows = x.dim[0], width = x.dim[1];
    Arguments const arguments{x.data,
                              static_cast<float const*>(scale.data),
                              static_cast<float const*>(shift.data),
                              y.data,
                              static_cast<int32_t>(rows),
                              static_cast<int32_t>(width),
                              rowsOfGroup(x, scale),
                              {attrs.kind.index == 0, attrs.eps}};
    return withRow<1>(x.type, wideRows(x, width, scale, shift, y), width, [&](auto tag) {
        using R = typename decltype(tag)::Type;
        return enqueue(normKernel<R>, R::ctas(rows), R::threads(width), 0, hopper::behind(stream), arguments);
    });
}

}  // namespace turbo
