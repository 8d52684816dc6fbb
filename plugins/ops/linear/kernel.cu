// y = activation(x @ w^T + bias) of bf16 or f16, with sums in f32.
#include "linear_hopper.cuh"
#include "linear_portable.cuh"

namespace turbo {
namespace {

template <class T>
Status launchAs(bool gelu, Call const& call, cudaStream_t stream) {
    auto const data = [](Tensor const& tensor) { return static_cast<T*>(tensor.data); };
    T* const bias = data(call.in[2]);
    T* const y = data(call.out[0]);
    auto const m = static_cast<int32_t>(call.in[0].dim[0]), n = static_cast<int32_t>(call.in[1].dim[0]);
    auto const k = static_cast<int32_t>(call.in[0].dim[1]);
    bool const wide = tile::aligned(y, n) && tile::aligned(bias, n);
    linear::Operands<T> const x{data(call.in[0]), data(call.in[1]), bias, y, m, n, k, gelu, wide};
    if (m == 0 || n == 0) return {};
    hopper::Device device;
    cudaError_t const error = hopper::describeDevice(device);
    if (error != cudaSuccess) return {nullptr, error};
    if (device.isHopper && linear::wgmma::takes(x)) {
        return linear::wgmma::launch(x, device.multiprocessors, stream);
    }
    return linear::portable::launch(x, stream);
}

}  // namespace

Status prepare(TurboLinear::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    int32_t const activation = attrs.activation.index;
    if (activation != 0 && activation != 1) return {"`activation` must be none or gelu_tanh"};
    DType const type = call.in[0].type;
    if (type != DType::kBF16 && type != DType::kF16) return {"x must be bf16 or f16"};
    int64_t const k = call.in[0].dim[1];
    // Kernels count the bytes of a row in int32, rounded up to whole steps.
    if (k < 1 || k > INT32_MAX / 2 - 64) return {"axis `k` must be at least 1 and below 2^30 - 64"};
    return tile::checkSizes(call.in[0].dim[0], call.in[1].dim[0]);
}

Status launch(TurboLinear::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    bool const gelu = attrs.activation.index == 1;
    if (call.in[0].type == DType::kBF16) return launchAs<__nv_bfloat16>(gelu, call, stream);
    return launchAs<__half>(gelu, call, stream);
}

}  // namespace turbo
