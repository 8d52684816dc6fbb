// Plan to engine, engine to contexts.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "library.h"
#include "log.h"

struct TurboTrtRuntime {
    TurboTrtLibrary const* library;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
};

struct TurboTrtEngine {
    TurboTrtLibrary const* library;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
};

struct TurboTrtRefitter {
    std::unique_ptr<nvinfer1::IRefitter> refitter;
};

namespace turbo {
namespace {

class LayerTimes final : public nvinfer1::IProfiler {
public:
    struct Time {
        std::string layer;
        float milliseconds;
    };

    void reportLayerTime(char const* layer, float milliseconds) noexcept override {
        (void)guarded([&] {
            mTimes.push_back({orEmpty(layer), milliseconds});
            return kTurboTrtOk;
        });
    }

    std::vector<Time> take() { return std::exchange(mTimes, {}); }

private:
    std::vector<Time> mTimes;
};

struct TypePair {
    TurboTrtType own;
    nvinfer1::DataType type;
};

constexpr TypePair kTypes[] = {
    {kTurboTrtF32, nvinfer1::DataType::kFLOAT},
    {kTurboTrtF16, nvinfer1::DataType::kHALF},
    {kTurboTrtBf16, nvinfer1::DataType::kBF16},
    {kTurboTrtI8, nvinfer1::DataType::kINT8},
    {kTurboTrtI32, nvinfer1::DataType::kINT32},
    {kTurboTrtI64, nvinfer1::DataType::kINT64},
    {kTurboTrtBool, nvinfer1::DataType::kBOOL},
    {kTurboTrtU8, nvinfer1::DataType::kUINT8},
    {kTurboTrtF8, nvinfer1::DataType::kFP8},
};

int32_t ownType(nvinfer1::DataType type) {
    for (auto const& pair : kTypes) {
        if (pair.type == type) return pair.own;
    }
    return kTurboTrtOther;
}

}  // namespace
}  // namespace turbo

struct TurboTrtContext {
    // Before the context that reports to it.
    turbo::LayerTimes times;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

int32_t turbo_trt_runtime_create(TurboTrtLibrary const* library, TurboTrtRuntime** out) {
    using namespace turbo;
    return guarded([&] {
        auto made = std::make_unique<TurboTrtRuntime>();
        made->library = library;
        made->runtime.reset(
            static_cast<nvinfer1::IRuntime*>(library->createRuntime(&logger(), library->asked())));
        if (!made->runtime) return fail(kTurboTrtEngine, {}, "TensorRT makes no runtime");
        // A plan is data; the code that it needs comes from the plugin library.
        made->runtime->setEngineHostCodeAllowed(false);
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_runtime_destroy(TurboTrtRuntime* runtime) { delete runtime; }

int32_t turbo_trt_runtime_load_plugins(TurboTrtRuntime* runtime, char const* file) {
    using namespace turbo;
    return guarded([&] {
        if (runtime->runtime->getPluginRegistry().loadLibrary(file) != nullptr) return int32_t{kTurboTrtOk};
        return fail(kTurboTrtPlugins, file, "TensorRT cannot load it as a plugin library");
    });
}

int32_t turbo_trt_engine_deserialize(
    TurboTrtRuntime* runtime, void const* plan, size_t bytes, TurboTrtEngine** out) {
    using namespace turbo;
    return guarded([&] {
        auto made = std::make_unique<TurboTrtEngine>();
        made->library = runtime->library;
        made->engine.reset(runtime->runtime->deserializeCudaEngine(plan, bytes));
        if (!made->engine) return fail(kTurboTrtEngine, {}, "TensorRT cannot load the plan");
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_engine_destroy(TurboTrtEngine* engine) { delete engine; }

void turbo_trt_engine_info(TurboTrtEngine const* engine, TurboTrtEngineInfo* info) {
    auto const& found = *engine->engine;
    info->layers = found.getNbLayers();
    info->tensors = found.getNbIOTensors();
    info->memory = found.getDeviceMemorySizeV2();
}

int32_t turbo_trt_engine_tensor(TurboTrtEngine const* engine, int32_t index, TurboTrtTensor* tensor) {
    using namespace turbo;
    return guarded([&] {
        auto const& found = *engine->engine;
        char const* const name = found.getIOTensorName(index);
        if (name == nullptr) return fail(kTurboTrtInternal, {}, "the engine has fewer tensors");
        auto const shape = found.getTensorShape(name);
        if (shape.nbDims < 0 || shape.nbDims > TURBO_TRT_MAX_RANK) {
            return fail(kTurboTrtEngine, name, "a tensor of the engine has no static shape");
        }
        tensor->name = name;
        tensor->input = found.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? 1 : 0;
        tensor->type = ownType(found.getTensorDataType(name));
        tensor->rank = shape.nbDims;
        for (int32_t i = 0; i < shape.nbDims; ++i) tensor->dim[i] = shape.d[i];
        return int32_t{kTurboTrtOk};
    });
}

int32_t turbo_trt_refitter_create(TurboTrtEngine* engine, TurboTrtRefitter** out) {
    using namespace turbo;
    return guarded([&] {
        auto made = std::make_unique<TurboTrtRefitter>();
        auto const& library = *engine->library;
        made->refitter.reset(static_cast<nvinfer1::IRefitter*>(
            library.createRefitter(engine->engine.get(), &logger(), library.asked())));
        if (!made->refitter) return fail(kTurboTrtRefit, {}, "TensorRT makes no refitter for this engine");
        // Looks at every value, and the values were checked when the engine file was written.
        made->refitter->setWeightsValidation(false);
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_refitter_destroy(TurboTrtRefitter* refitter) { delete refitter; }

int32_t turbo_trt_refitter_weights(TurboTrtRefitter* refitter, TurboTrtWeightFn weight, void* user) {
    using namespace turbo;
    return guarded([&] {
        nvinfer1::IRefitter& found = *refitter->refitter;
        int32_t const count = found.getAllWeights(0, nullptr);
        std::vector<char const*> names(static_cast<size_t>(count));
        if (count > 0) found.getAllWeights(count, names.data());
        for (char const* name : names) {
            auto const prototype = found.getWeightsPrototype(name);
            weight(user, orEmpty(name), ownType(prototype.type), prototype.count);
        }
        return int32_t{kTurboTrtOk};
    });
}

int32_t turbo_trt_refitter_set(
    TurboTrtRefitter* refitter, char const* name, int32_t type, void const* data, int64_t count) {
    using namespace turbo;
    return guarded([&] {
        for (auto const& pair : kTypes) {
            if (pair.own != type) continue;
            nvinfer1::Weights const weights{pair.type, data, count};
            if (refitter->refitter->setNamedWeights(name, weights)) return int32_t{kTurboTrtOk};
            return fail(kTurboTrtRefit, name, "TensorRT refuses the new values");
        }
        return fail(kTurboTrtRefit, name, "its type cannot be refitted");
    });
}

int32_t turbo_trt_refitter_run(TurboTrtRefitter* refitter) {
    using namespace turbo;
    return guarded([&] {
        if (refitter->refitter->refitCudaEngine()) return int32_t{kTurboTrtOk};
        return fail(kTurboTrtRefit, {}, "TensorRT cannot refit the engine");
    });
}

int32_t turbo_trt_context_create(TurboTrtEngine* engine, TurboTrtContext** out) {
    using namespace turbo;
    return guarded([&] {
        auto made = std::make_unique<TurboTrtContext>();
        made->context.reset(engine->engine->createExecutionContext(
            nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (!made->context) return fail(kTurboTrtRun, {}, "TensorRT makes no execution context");
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_context_destroy(TurboTrtContext* context) { delete context; }

void turbo_trt_context_set_memory(TurboTrtContext* context, void* memory, int64_t bytes) {
    context->context->setDeviceMemoryV2(memory, bytes);
}

int32_t turbo_trt_context_set_address(TurboTrtContext* context, char const* tensor, void* address) {
    using namespace turbo;
    return guarded([&] {
        if (context->context->setTensorAddress(tensor, address)) return int32_t{kTurboTrtOk};
        return fail(kTurboTrtRun, tensor, "TensorRT refuses the tensor's address");
    });
}

int32_t turbo_trt_context_enqueue(TurboTrtContext* context, void* stream) {
    using namespace turbo;
    return guarded([&] {
        if (context->context->enqueueV3(static_cast<cudaStream_t>(stream))) return int32_t{kTurboTrtOk};
        return fail(kTurboTrtRun, {}, "TensorRT cannot run the engine");
    });
}

void turbo_trt_context_measure(TurboTrtContext* context, int32_t on) {
    context->context->setProfiler(on != 0 ? &context->times : nullptr);
}

void turbo_trt_context_take_times(TurboTrtContext* context, TurboTrtTimeFn time, void* user) {
    for (auto const& taken : context->times.take()) time(user, taken.layer.c_str(), taken.milliseconds);
}
