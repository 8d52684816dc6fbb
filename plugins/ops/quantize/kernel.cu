// q = sat8(rne(x * top / amax)), s = amax / top. One CTA per block of 128 x 128, held in registers.
#include "../common/cuda/hopper.cuh"
#include "../common/cuda/quant.cuh"

namespace turbo {
namespace {

template <Format kFormat, class T, bool wide>
__global__ void __launch_bounds__(kBlockThreads) quantizeKernel(T const* x, int8_t* q, float* s, int64_t m,
                                                               int64_t k) {
    constexpr int32_t kLanes = wide ? kWide<T> : 1;
    followKernelAhead();
    Block<T, kLanes, wide> block;
    BlockPlace const place(blockIdx.x, m, k);
    T const* const from = x + place.row * k + place.column + block.column();
    block.forEach(place, [&](Pack<T, kLanes>& v, int32_t row) { load<wide>(v, from + row * k); });
    block.template quantize<kFormat>(place, k, q, s + blockIdx.x);
}

}  // namespace

Status prepare(TurboQuantize::Attrs const&, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& x = call.in[TurboQuantize::kInX];
    return checkBlocks(x.dim[0], x.dim[1]);
}

Status launch(TurboQuantize::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    Tensor const& x = call.in[TurboQuantize::kInX];
    Tensor const& q = call.out[TurboQuantize::kOutQ];
    Tensor const& s = call.out[TurboQuantize::kOutS];
    if (x.count() == 0) return {};
    int64_t const m = x.dim[0], k = x.dim[1];
    auto const blocks = static_cast<uint32_t>(blockCount(m, k));
    return withFormat(attrs.format.index, [&](auto format) {
        return withAccess(x.type, wideRows(x, k, q), [&](auto tag, auto access) {
            using T = typename decltype(tag)::Type;
            return enqueue(quantizeKernel<decltype(format)::value, T, decltype(access)::value>, blocks, kBlockThreads,
                           0, hopper::behind(stream), static_cast<T const*>(x.data), static_cast<int8_t*>(q.data),
                           static_cast<float*>(s.data), m, k);
        });
    });
}

}  // namespace turbo
