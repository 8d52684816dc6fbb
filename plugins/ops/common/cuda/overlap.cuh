// Kernels that begin before the one ahead of them on the stream has ended: programmatic dependent launch (CUDA C++
// Programming Guide, "Programmatic Dependent Launch and Synchronization"; PTX ISA, "griddepcontrol"), from compute
// capability 9.0 on. Thread blocks of the next kernel take the place of the last ones of this, and have set up their
// shared memory when these end.
//
// A kernel waits for the one ahead before it lets the next one begin: whenever a kernel begins, all but the one directly
// ahead have ended, and what they wrote is there.
#pragma once

#include <cuda_runtime.h>

#include "op.h"

namespace turbo {

// Waits until the kernel ahead has ended and what it wrote is there; at once where that is so from the beginning.
__device__ __forceinline__ void awaitKernelAhead() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The same, and lets the next kernel begin once every thread block has come here, or ended.
__device__ __forceinline__ void followKernelAhead() {
    awaitKernelAhead();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Where a kernel is enqueued.
struct Queue {
    cudaStream_t stream;
    bool early;  // it begins when the one ahead lets it, instead of after that one's end
};

// The attribute of a launch that may begin early.
inline cudaLaunchAttribute beginEarly() {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    return attribute;
}

template <class... P, class... A>
Status enqueue(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, Queue queue, A const&... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = queue.stream;
    cudaLaunchAttribute attribute = beginEarly();
    config.attrs = &attribute;
    config.numAttrs = queue.early ? 1 : 0;
    cudaError_t error = cudaSuccess;
    if (shared > 0) {
        error = cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    }
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, P(args)...);
    return launched(error);
}

}  // namespace turbo
