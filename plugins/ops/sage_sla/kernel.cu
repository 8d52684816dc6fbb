// o = sage_sparse_softmax(q, k) v + proj_l(linear_attention(q, k, v)).
#include "../common/cuda/attn_sage.cuh"

namespace turbo {

using Op = TurboSageSla;

namespace {

bool isFp8(TurboSageSla::Attrs const& attrs) { return attrs.pv.index == 0; }

// The workspace of both branches.
template <class T>
struct Buffers {
    attn::Workspace workspace;
    attn::SageBuffers sage;
    attn::LinearBuffers<T> linear;

    Buffers(void* memory, attn::Shape const& shape, TurboSageSla::Attrs const& attrs)
        : workspace(memory), sage(workspace, shape, attrs.block_k, isFp8(attrs)), linear(workspace, shape) {}
};

}  // namespace

Status prepare(TurboSageSla::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Status status = attn::checkShape(call, attrs);
    if (status.ok()) status = attn::checkBlocks(attrs.block_q, attrs.block_k);
    if (!status.ok()) return status;
    return attn::byType(call.in[Op::kInQ].type, [&](auto type) {
        Buffers<decltype(type)> const buffers(nullptr, attn::shapeOf(call, attrs), attrs);
        *bytes = buffers.workspace.used();
        return Status{};
    });
}

Status launch(TurboSageSla::Attrs const& attrs, Call const& call, void* memory, cudaStream_t stream) {
    attn::Shape const shape = attn::shapeOf(call, attrs);
    Tensor const& lut = call.in[Op::kInLut];
    attn::Kept const kept{static_cast<int32_t const*>(lut.data), static_cast<int32_t>(lut.dim[3])};
    return attn::byType(call.in[Op::kInQ].type, [&](auto type) {
        using T = decltype(type);
        Buffers<T> const buffers(memory, shape, attrs);
        return attn::launchSage<true>(buffers.sage, buffers.linear, shape, call, Op::kInKSums, Op::kInProjW, kept,
                                      attrs.block_q, attrs.block_k, isFp8(attrs), stream);
    });
}

}  // namespace turbo
