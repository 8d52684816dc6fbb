// q, s = quantize(norm(x) * scale + shift). One kernel gives every row's moments, a second normalises and
// quantises blocks of 128 x 128 in registers; the normalised values never leave f32 and never reach memory.
// Hopper does it in one pass: see cluster.cuh.
#include "../common/cuda/hopper.cuh"
#include "cluster.cuh"

namespace turbo {
namespace {

struct Arguments {
    void const* x;
    float const* scale;
    float const* shift;
    Moments* moments;  // [rows]
    int8_t* q;
    float* s;
    int32_t rows;
    int32_t width;
    int32_t rowsOfGroup;
    NormKind kind;
};

template <class R>
__global__ void __launch_bounds__(R::kThreadsMax, R::kCtasMin) momentsKernel(Arguments a) {
    int32_t const index = R::index();
    if (index >= a.rows) return;
    R row;
    row.read(static_cast<typename R::Element const*>(a.x) + static_cast<int64_t>(index) * a.width, a.width);
    Moments const moments = row.moments(a.width, a.kind);
    if (R::isFirst()) a.moments[index] = moments;
}

template <Format kFormat, class T, bool wide>
__global__ void __launch_bounds__(kBlockThreads) normQuantizeKernel(Arguments a) {
    constexpr int32_t kLanes = wide ? kWide<T> : 1;
    // From the last block to the first: the rows that were read last may still be in the cache.
    uint32_t const index = gridDim.x - 1 - blockIdx.x;
    Block<float, kLanes, wide> block;
    BlockPlace const place(index, a.rows, a.width);
    int32_t const column = static_cast<int32_t>(place.column) + block.column();
    T const* const x = static_cast<T const*>(a.x) + place.row * a.width + column;
    block.forEach(place, [&](Pack<float, kLanes>& v, int32_t row) {
        load<wide>(v.at, x + static_cast<int64_t>(row) * a.width);
    });

    int32_t held = -1;
    float scale[kLanes], shift[kLanes];
    block.forEach(place, [&](Pack<float, kLanes>& v, int32_t row) {
        int32_t const token = static_cast<int32_t>(place.row) + row;
        int32_t const group = token / a.rowsOfGroup;
        if (group != held) {
            load<wide>(scale, a.scale + static_cast<int64_t>(group) * a.width + column);
            load<wide>(shift, a.shift + static_cast<int64_t>(group) * a.width + column);
            held = group;
        }
        Moments const moments = a.moments[token];
#pragma unroll
        for (int32_t i = 0; i < kLanes; ++i) v.at[i] = normalize(v.at[i], moments, scale[i], shift[i]);
    });
    block.template quantize<kFormat>(place, a.width, a.q, a.s + index);
}

}  // namespace

Status prepare(TurboNormQuantize::Attrs const&, Call const& call, size_t* bytes) {
    Tensor const& x = call.in[TurboNormQuantize::kInX];
    *bytes = static_cast<size_t>(x.dim[0]) * sizeof(Moments);
    Status status = checkRows(x);
    if (status.ok()) status = checkBlocks(x.dim[0], x.dim[1]);
    return status.ok() ? checkGroups(x, call.in[TurboNormQuantize::kInScale]) : status;
}

Status launch(TurboNormQuantize::Attrs const& attrs, Call const& call, void* workspace, cudaStream_t stream) {
    Tensor const& x = call.in[TurboNormQuantize::kInX];
    Tensor const& scale = call.in[TurboNormQuantize::kInScale];
    Tensor const& shift = call.in[TurboNormQuantize::kInShift];
    Tensor const& q = call.out[TurboNormQuantize::kOutQ];
    Tensor const& s = call.out[TurboNormQuantize::kOutS];
    if (x.count() == 0) return {};
    int64_t const rows = x.dim[0], width = x.dim[1];
    Arguments const arguments{x.data,
                              static_cast<float const*>(scale.data),
                              static_cast<float const*>(shift.data),
                              static_cast<Moments*>(workspace),
                              static_cast<int8_t*>(q.data),
                              static_cast<float*>(s.data),
                              static_cast<int32_t>(rows),
                              static_cast<int32_t>(width),
                              rowsOfGroup(x, scale),
                              {attrs.kind.index == 0, attrs.eps}};
    bool const wide = wideRows(x, width, scale, shift, q);
    hopper::Device device;
    cudaError_t const error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    if (device.isHopper && wide && norm_quantize::fits(x.type, width)) {
        Status const status = withFormat(attrs.format.index, [&](auto format) {
            constexpr Format kFormat = decltype(format)::value;
            return x.type == DType::kBF16 ? norm_quantize::launch<kFormat, __nv_bfloat16>(arguments, stream)
                                          : norm_quantize::launch<kFormat, __half>(arguments, stream);
        });
        if (status.cuda != cudaErrorNotSupported) return status;
    }
    Status const status = withRow<1>(x.type, wide, width, [&](auto tag) {
        using R = typename decltype(tag)::Type;
        return enqueue(momentsKernel<R>, R::ctas(rows), R::threads(width), 0, {stream, false}, arguments);
    });
    if (!status.ok()) return status;
    auto const blocks = static_cast<uint32_t>(blockCount(rows, width));
    return withFormat(attrs.format.index, [&](auto format) {
        return withAccess(x.type, wide, [&](auto tag, auto access) {
            using T = typename decltype(tag)::Type;
            constexpr bool kAccess = decltype(access)::value;
            return enqueue(normQuantizeKernel<decltype(format)::value, T, kAccess>, blocks, kBlockThreads, 0,
                           {stream, false}, arguments);
        });
    });
}

}  // namespace turbo
