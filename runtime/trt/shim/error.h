// The last failure of each thread, and the frame that keeps exceptions inside the shim.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <exception>
#include <string>

#include "turbo_trt.h"

namespace turbo {

// Keeps subject and text for the thread and returns the code.
int32_t fail(TurboTrtCode code, std::string subject, std::string text) noexcept;

// kTurboTrtOk for cudaSuccess. Takes the error out of CUDA's own memory of it.
int32_t checkCuda(char const* call, cudaError_t error) noexcept;

// Runs `work`, which returns a code; an exception becomes a failure.
template <class Work>
int32_t guarded(Work&& work) noexcept {
    try {
        return work();
    } catch (std::exception const& error) {
        // Nothing here may allocate much: the reason may be that there is no memory.
        return fail(kTurboTrtInternal, {}, error.what());
    }
}

// Text or, for null, nothing.
inline char const* orEmpty(char const* text) { return text == nullptr ? "" : text; }

}  // namespace turbo
