#include "error.h"

#include <utility>

namespace turbo {
namespace {

struct Failure {
    std::string subject;
    std::string text;
};

thread_local Failure failure;

}  // namespace

int32_t fail(TurboTrtCode code, std::string subject, std::string text) noexcept {
    failure.subject = std::move(subject);
    failure.text = std::move(text);
    return code;
}

int32_t checkCuda(char const* call, cudaError_t error) noexcept {
    if (error == cudaSuccess) return kTurboTrtOk;
    (void)cudaGetLastError();
    TurboTrtCode const code = error == cudaErrorMemoryAllocation ? kTurboTrtMemory : kTurboTrtCuda;
    return guarded([&] {
        std::string const text = cudaGetErrorString(error);
        return fail(code, call, text + " (" + cudaGetErrorName(error) + ")");
    });
}

}  // namespace turbo

int32_t turbo_trt_abi(void) { return TURBO_TRT_ABI; }

char const* turbo_trt_error_subject(void) { return turbo::failure.subject.c_str(); }

char const* turbo_trt_error_text(void) { return turbo::failure.text.c_str(); }
