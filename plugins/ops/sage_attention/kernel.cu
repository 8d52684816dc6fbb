// o = sage_softmax(q, k) v: dense SageAttention.
#include "../common/cuda/attn_sage.cuh"

namespace turbo {
namespace {

bool isFp8(TurboSageAttention::Attrs const& attrs) { return attrs.pv.index == 0; }

}  // namespace

Status prepare(TurboSageAttention::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Status status = attn::checkShape(call, attrs);
    if (status.ok()) status = attn::checkBlocks(attrs.block_q, attrs.block_k);
    if (!status.ok()) return status;
    attn::Workspace workspace;
    attn::SageBuffers const buffers(workspace, attn::shapeOf(call, attrs), attrs.block_k, isFp8(attrs));
    *bytes = workspace.used();
    return {};
}

Status launch(TurboSageAttention::Attrs const& attrs, Call const& call, void* memory, cudaStream_t stream) {
    attn::Shape const shape = attn::shapeOf(call, attrs);
    attn::Workspace workspace(memory);
    attn::SageBuffers const buffers(workspace, shape, attrs.block_k, isFp8(attrs));
    attn::Kept const all{nullptr, buffers.blocks};
    return attn::byType(call.in[0].type, [&](auto type) {
        attn::LinearBuffers<decltype(type)> const none;
        return attn::launchSage<false>(buffers, none, shape, call, TurboSageAttention::kInKSums, 0, all, attrs.block_q,
                                       attrs.block_k, isFp8(attrs), stream);
    });
}

}  // namespace turbo
