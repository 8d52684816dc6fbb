// o = softmax(q k^T / sqrt(d)) v, in the activation type.
#include "../common/cuda/attn_dense_hopper.cuh"
#include "../common/cuda/attn_exact.cuh"

namespace turbo {
namespace {

// The op itself has no blocks.
constexpr int32_t kBlockQ = 128;
constexpr int32_t kBlockK = attn::kExactTile;

}  // namespace

Status prepare(TurboAttention::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    return attn::checkShape(call, attrs);
}

Status launch(TurboAttention::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    attn::Shape const shape = attn::shapeOf(call, attrs);
    hopper::Device device;
    cudaError_t const error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    return attn::byType(call.in[0].type, [&](auto type) {
        using T = decltype(type);
        if (attn::wgmma::takes(device, shape)) {
            return attn::wgmma::launchDense<T>(shape, call, device.multiprocessors, stream);
        }
        attn::Kept const all{nullptr, attn::ceilDiv(shape.s, kBlockK)};
        attn::Linear<T> const none{};
        return attn::launchExact<false>(shape, call, all, kBlockQ, kBlockK, none, stream);
    });
}

}  // namespace turbo
