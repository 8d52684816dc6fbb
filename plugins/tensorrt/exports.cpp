// The plugin library's two exports, which TensorRT looks up when it loads the library
// (`IPluginRegistry::loadLibrary`). The library links no TensorRT: one file serves the builder, the full
// runtime and the lean runtime.

#include <atomic>
#include <cstdio>

#include "adapter.h"

namespace turbo {

namespace {
std::atomic<trt::ILoggerFinder*> gFinder{nullptr};
}  // namespace

void setLogger(trt::ILoggerFinder* finder) noexcept { gFinder = finder; }

void logError(char const* op, char const* text) noexcept {
    try {
        std::string const line = std::string(op) + ": " + text;
        trt::ILoggerFinder* const finder = gFinder;
        trt::ILogger* const logger = finder ? finder->findLogger() : nullptr;
        if (logger) {
            logger->log(trt::ILogger::Severity::kERROR, line.c_str());
        } else {
            std::fprintf(stderr, "%s\n", line.c_str());
        }
    } catch (...) {
        std::fprintf(stderr, "%s: an error that could not be logged\n", op);
    }
}

std::string describe(char const* name, Tensor const& tensor) {
    constexpr char const* kTypes[] = {"f32", "bf16", "f16", "i8", "i32"};
    std::string text = std::string(name) + " " + kTypes[static_cast<int32_t>(tensor.type)] + " [";
    for (int32_t d = 0; d < tensor.rank; ++d) text += (d ? ", " : "") + std::to_string(tensor.dim[d]);
    return text + "]";
}

std::string describeDevice() {
    int device = 0;
    int major = 0;
    int minor = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
        return {};
    }
    return ", compute capability " + std::to_string(major) + "." + std::to_string(minor);
}

namespace {

// Never destroyed: the registry may still look at creators while the process ends.
template <class Op>
trt::IPluginCreatorInterface* creator() {
    static auto* const instance = new Creator<Op>();
    return instance;
}

}  // namespace
}  // namespace turbo

#define TURBO_EXPORT extern "C" __attribute__((visibility("default")))

TURBO_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    return turbo::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
        count = 0;
#define TURBO_CREATOR(Op) turbo::creator<turbo::Op>(),
        static nvinfer1::IPluginCreatorInterface* const all[] = {TURBO_OPS(TURBO_CREATOR)};
#undef TURBO_CREATOR
        count = static_cast<int32_t>(std::size(all));
        return all;
    });
}

TURBO_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { turbo::setLogger(finder); }
