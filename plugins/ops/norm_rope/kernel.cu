// y = rope(rms_norm(x) * weight), rounded to T. A vector holds whole pairs of one head, so its angles are neighbours in
// the tables `[l, d/2]`.
#include "../common/cuda/norm.cuh"

namespace turbo {
namespace {

struct Arguments {
    void const* x;
    float const* weight;
    float const* cos;
    float const* sin;
    void* y;
    int32_t rows;
    int32_t width;
    int32_t length;
    int32_t headWidth;
    float eps;
};

template <class R>
__global__ void __launch_bounds__(R::kThreadsMax, R::kCtasMin) normRopeKernel(Arguments a) {
    using T = typename R::Element;
    constexpr bool kAccess = R::kWideAccess;
    constexpr int32_t kPairs = R::kVector / 2;
    int32_t const index = R::index();
    if (index >= a.rows) return;
    int64_t const at = static_cast<int64_t>(index) * a.width;
    int64_t const angles = static_cast<int64_t>(index % a.length) * (a.headWidth / 2);
    R row;
    row.read(static_cast<T const*>(a.x) + at, a.width);
    Moments const moments = row.moments(a.width, {false, a.eps});
    row.forEach(a.width, [&](float (&v)[R::kVector], int32_t column) {
        int32_t const pair = column % a.headWidth / 2;
        float weight[R::kVector], cos[kPairs], sin[kPairs];
        load<kAccess>(weight, a.weight + column);
        load<kAccess>(cos, a.cos + angles + pair);
        load<kAccess>(sin, a.sin + angles + pair);
#pragma unroll
        for (int32_t i = 0; i < kPairs; ++i) {
            float const x0 = normalize(v[2 * i], moments, weight[2 * i], 0.0f);
            float const x1 = normalize(v[2 * i + 1], moments, weight[2 * i + 1], 0.0f);
            v[2 * i] = x0 * cos[i] - x1 * sin[i];
            v[2 * i + 1] = x0 * sin[i] + x1 * cos[i];
        }
        store<kAccess>(static_cast<T*>(a.y) + at + column, v);
    });
}

}  // namespace

Status prepare(TurboNormRope::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& x = call.in[TurboNormRope::kInX];
    if (attrs.heads <= 0) return {"`heads` must be positive"};
    if (x.dim[1] % (2 * static_cast<int64_t>(attrs.heads)) != 0) {
        return {"`heads` must divide axis `c` of `x` into heads of whole pairs"};
    }
    int64_t const length = call.in[TurboNormRope::kInCos].dim[0];
    if (length < 1 || x.dim[0] % length != 0) return {"axis `l` of `cos` must divide the rows of `x`"};
    return checkRows(x);
}

Status launch(TurboNormRope::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    Tensor const& x = call.in[TurboNormRope::kInX];
    Tensor const& weight = call.in[TurboNormRope::kInWeight];
    Tensor const& cos = call.in[TurboNormRope::kInCos];
    Tensor const& sin = call.in[TurboNormRope::kInSin];
    Tensor const& y = call.out[TurboNormRope::kOutY];
    if (x.count() == 0) return {};
    int64_t const rows = x.dim[0], width = x.dim[1], headWidth = width / attrs.heads;
    Arguments const arguments{x.data,
                              static_cast<float const*>(weight.data),
                              static_cast<float const*>(cos.data),
                              static_cast<float const*>(sin.data),
                              y.data,
                              static_cast<int32_t>(rows),
                              static_cast<int32_t>(width),
                              static_cast<int32_t>(cos.dim[0]),
                              static_cast<int32_t>(headWidth),
                              attrs.eps};
    return withRow<2>(x.type, wideRows(x, headWidth, weight, cos, sin, y), width, [&](auto tag) {
        using R = typename decltype(tag)::Type;
        normRopeKernel<R><<<R::ctas(rows), R::threads(width), 0, stream>>>(arguments);
    });
}

}  // namespace turbo
