// o = sparse_softmax(q k^T / sqrt(d)) v + proj_l(linear_attention(q, k, v)), in the activation type.
#include "../common/cuda/attn_exact.cuh"
#include "../common/cuda/attn_sla_hopper.cuh"

namespace turbo {

using Op = TurboSla;

Status prepare(TurboSla::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Status status = attn::checkShape(call, attrs);
    if (status.ok()) status = attn::checkBlocks(attrs.block_q, attrs.block_k);
    if (!status.ok()) return status;
    return attn::byType(call.in[Op::kInQ].type, [&](auto type) {
        attn::Workspace workspace;
        attn::LinearBuffers<decltype(type)> const buffers(workspace, attn::shapeOf(call, attrs));
        *bytes = workspace.used();
        return Status{};
    });
}

Status launch(TurboSla::Attrs const& attrs, Call const& call, void* memory, cudaStream_t stream) {
    attn::Shape const shape = attn::shapeOf(call, attrs);
    Tensor const& lut = call.in[Op::kInLut];
    attn::Kept const kept{static_cast<int32_t const*>(lut.data), static_cast<int32_t>(lut.dim[3])};
    hopper::Device device;
    cudaError_t const error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    bool const onHopper = attn::wgmma::takes(device, shape);
    Queue const queue = {stream, onHopper};
    return attn::byType(call.in[Op::kInQ].type, [&](auto type) {
        using T = decltype(type);
        attn::Workspace workspace(memory);
        attn::LinearBuffers<T> const buffers(workspace, shape);
        Status status = attn::enqueuePass<T, attn::Unpacked, true>(shape, call, {}, buffers.sums, queue);
        if (!status.ok()) return status;
        attn::Linear<T> linear;
        status = attn::foldLinear(buffers, shape, call, Op::kInProjW, onHopper, queue, &linear);
        if (!status.ok()) return status;
        if (onHopper) {
            return attn::wgmma::launchSla(shape, call, kept, attrs.block_q, attrs.block_k, linear, queue);
        }
        return attn::launchExact<true>(shape, call, kept, attrs.block_q, attrs.block_k, linear, stream);
    });
}

}  // namespace turbo
