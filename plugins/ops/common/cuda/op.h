// What a CUDA kernel of an op is: two functions found by the op's attributes. The plugin library and the kernel
// library call them; kernels see sizes and raw pointers, never TensorRT.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "turbo_ops.h"

namespace turbo {

// Element types at run time.
enum class DType : int32_t { kF32, kBF16, kF16, kI8, kI32 };

constexpr int32_t kMaxRank = 4;
constexpr int32_t kSumRows = 32;  // rows of each sum that TurboNormRope gives

// Contiguous row-major elements on the device. `data` is null where only sizes matter.
struct Tensor {
    DType type;
    int32_t rank;
    int64_t dim[kMaxRank];
    void* data;

    int64_t count() const {
        int64_t n = 1;
        for (int32_t i = 0; i < rank; ++i) n *= dim[i];
        return n;
    }
};

// The tensors of one node in the order of its definition. Ranks, types and sizes agree with the definition
// (`Op::inputShapes`) before a kernel sees them.
struct Call {
    Tensor const* in;
    Tensor const* out;
};

// Why a kernel cannot run. `what` is null for success, else static text: what was expected of which tensor or attribute.
struct Status {
    char const* what = nullptr;
    cudaError_t cuda = cudaSuccess;

    bool ok() const { return what == nullptr && cuda == cudaSuccess; }
};

// What became of a launch. Clears CUDA's last error, which the next launch would report as its own.
inline Status launched(cudaError_t error) {
    cudaError_t const last = cudaGetLastError();
    return {nullptr, error == cudaSuccess ? last : error};
}

// For every op, in its folder's kernel.cu:
//
// prepare   says whether the kernel takes these attributes, types and sizes, and how many bytes of workspace it needs;
//           never less for larger sizes.
// launch    enqueues the work and returns. No allocation, no synchronisation, and nothing that depends on data on the
//           device: it may be captured into a CUDA graph. Every element of every output is written. `workspace` is
//           aligned to 256 bytes and may hold anything.
#define TURBO_DECLARE_KERNEL(Op)                                             \
    Status prepare(Op::Attrs const& attrs, Call const& call, size_t* bytes); \
    Status launch(Op::Attrs const& attrs, Call const& call, void* workspace, cudaStream_t stream);
TURBO_OPS(TURBO_DECLARE_KERNEL)
#undef TURBO_DECLARE_KERNEL

}  // namespace turbo
