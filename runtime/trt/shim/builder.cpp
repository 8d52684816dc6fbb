// ONNX to plan.
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "library.h"
#include "log.h"

struct TurboTrtBuilder {
    TurboTrtLibrary const* library;
    // Members go in reverse: a timing cache must outlive the builder that uses it.
    std::vector<std::unique_ptr<nvinfer1::ITimingCache>> timingCaches;
    std::unique_ptr<nvinfer1::IBuilder> builder;
    // A build was stopped. TensorRT's threads may still be at work then, on what it was given: nothing of it is
    // destroyed any more.
    bool stopped = false;
};

struct TurboTrtNetwork {
    TurboTrtBuilder* builder;
    std::unique_ptr<nvinfer1::INetworkDefinition> network;
    // The network points into the parser's weights.
    std::unique_ptr<nvonnxparser::IParser> parser;
};

struct TurboTrtPlan {
    std::unique_ptr<nvinfer1::IHostMemory> plan;
    std::unique_ptr<nvinfer1::IHostMemory> timingCache;
};

namespace turbo {
namespace {

// From TensorRT 11 on every network is strongly typed.
#if NV_TENSORRT_MAJOR >= 11
constexpr uint32_t kNetworkFlags = 0;
#else
constexpr uint32_t kNetworkFlags =
    1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif

std::string describe(nvonnxparser::IParserError const& error) {
    std::string text;
    if (error.node() >= 0) {
        text = "node " + std::to_string(error.node()) + " " + orEmpty(error.nodeName()) + " (" +
            orEmpty(error.nodeOperator()) + "): ";
    }
    text += orEmpty(error.desc());
    return text + " [" + orEmpty(error.file()) + ":" + std::to_string(error.line()) + "]";
}

int32_t parseFailed(nvonnxparser::IParser const& parser) {
    std::string text;
    for (int i = 0; i < parser.getNbErrors(); ++i) {
        if (!text.empty()) text += "\n";
        text += describe(*parser.getError(i));
    }
    if (text.empty()) text = "the parser gives no reason";
    return fail(kTurboTrtParse, {}, std::move(text));
}

// Hands the phases of a build to the caller and its wish to stop back.
class Monitor final : public nvinfer1::IProgressMonitor {
public:
    Monitor(TurboTrtProgressFn progress, void* user) : mProgress(progress), mUser(user) {}

    void phaseStart(char const* phase, char const* parent, int32_t steps) noexcept override {
        (void)guarded([&] {
            std::lock_guard<std::mutex> const lock(mMutex);
            Phase const& started = mPhases[phase] = {orEmpty(parent), steps};
            report(phase, started, 0);
            return kTurboTrtOk;
        });
    }

    bool stepComplete(char const* phase, int32_t step) noexcept override {
        (void)guarded([&] {
            std::lock_guard<std::mutex> const lock(mMutex);
            auto const known = mPhases.find(phase);
            if (known != mPhases.end()) report(phase, known->second, step + 1);
            return kTurboTrtOk;
        });
        return !mStopped;
    }

    void phaseFinish(char const* phase) noexcept override {
        (void)guarded([&] {
            std::lock_guard<std::mutex> const lock(mMutex);
            mPhases.erase(phase);
            return kTurboTrtOk;
        });
    }

    bool stopped() const { return mStopped; }

    // The caller is not asked any more, whoever of TensorRT's threads still reports.
    void leave() {
        std::lock_guard<std::mutex> const lock(mMutex);
        mProgress = nullptr;
    }

private:
    struct Phase {
        std::string parent;
        int32_t steps;
    };

    void report(char const* name, Phase const& phase, int32_t step) {
        if (mProgress == nullptr) return;
        if (mProgress(mUser, name, phase.parent.c_str(), phase.steps, step) == 0) mStopped = true;
    }

    TurboTrtProgressFn mProgress;
    void* mUser;
    std::mutex mMutex;
    std::map<std::string, Phase> mPhases;
    std::atomic<bool> mStopped{false};
};

void configure(nvinfer1::IBuilderConfig& config, TurboTrtBuildOptions const& options) {
    using nvinfer1::BuilderFlag;
    if (options.strip != 0) {
        config.setFlag(BuilderFlag::kSTRIP_PLAN);
        config.setFlag(BuilderFlag::kREFIT_IDENTICAL);
    }
    // What a graph says to be f32 is f32.
    config.clearFlag(BuilderFlag::kTF32);
    config.setBuilderOptimizationLevel(options.level);
}

// A cache of another version or GPU is no reason to fail: the build starts with an empty one.
std::unique_ptr<nvinfer1::ITimingCache> useTimingCache(
    nvinfer1::IBuilderConfig& config, TurboTrtBuildOptions const& options) {
    std::unique_ptr<nvinfer1::ITimingCache> cache;
    if (options.timing_cache != nullptr) {
        cache.reset(config.createTimingCache(options.timing_cache, options.timing_cache_bytes));
        if (cache && config.setTimingCache(*cache, false)) return cache;
    }
    cache.reset(config.createTimingCache(nullptr, 0));
    if (cache && config.setTimingCache(*cache, false)) return cache;
    return nullptr;
}

}  // namespace
}  // namespace turbo

int32_t turbo_trt_builder_create(TurboTrtLibrary const* library, TurboTrtBuilder** out) {
    using namespace turbo;
    return guarded([&] {
        if (library->createParser == nullptr) {
            return fail(kTurboTrtInternal, {}, "the ONNX parser was not opened");
        }
        auto made = std::make_unique<TurboTrtBuilder>();
        made->library = library;
        made->builder.reset(
            static_cast<nvinfer1::IBuilder*>(library->createBuilder(&logger(), library->asked())));
        if (!made->builder) return fail(kTurboTrtBuild, {}, "TensorRT makes no builder");
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_builder_destroy(TurboTrtBuilder* builder) {
    if (!builder->stopped) delete builder;
}

int32_t turbo_trt_builder_load_plugins(TurboTrtBuilder* builder, char const* file) {
    using namespace turbo;
    return guarded([&] {
        if (builder->builder->getPluginRegistry().loadLibrary(file) != nullptr) return int32_t{kTurboTrtOk};
        return fail(kTurboTrtPlugins, file, "TensorRT cannot load it as a plugin library");
    });
}

int32_t turbo_trt_network_parse(
    TurboTrtBuilder* builder, void const* onnx, size_t bytes, char const* path, TurboTrtNetwork** out) {
    using namespace turbo;
    return guarded([&] {
        auto made = std::make_unique<TurboTrtNetwork>();
        made->builder = builder;
        made->network.reset(builder->builder->createNetworkV2(kNetworkFlags));
        if (!made->network) return fail(kTurboTrtBuild, {}, "TensorRT makes no network");
        made->parser.reset(static_cast<nvonnxparser::IParser*>(
            builder->library->createParser(made->network.get(), &logger(), NV_ONNX_PARSER_VERSION)));
        if (!made->parser) return fail(kTurboTrtParse, {}, "TensorRT makes no parser");
        if (!made->parser->parse(onnx, bytes, path)) return parseFailed(*made->parser);
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_network_destroy(TurboTrtNetwork* network) {
    if (!network->builder->stopped) delete network;
}

int32_t turbo_trt_network_layers(TurboTrtNetwork const* network, TurboTrtLayerFn layer, void* user) {
    using namespace turbo;
    return guarded([&] {
        for (int32_t i = 0; i < network->network->getNbLayers(); ++i) {
            nvinfer1::ILayer* const found = network->network->getLayer(i);
            char const* op = nullptr;
            if (found->getType() == nvinfer1::LayerType::kPLUGIN_V3) {
                auto& plugin = static_cast<nvinfer1::IPluginV3Layer*>(found)->getPlugin();
                auto const* const core = static_cast<nvinfer1::IPluginV3OneCore const*>(
                    plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
                op = core == nullptr ? "" : orEmpty(core->getPluginName());
            }
            layer(user, orEmpty(found->getName()), op);
        }
        return int32_t{kTurboTrtOk};
    });
}

int32_t turbo_trt_network_build(
    TurboTrtNetwork* network, TurboTrtBuildOptions const* options, TurboTrtPlan** out) {
    using namespace turbo;
    return guarded([&] {
        auto& owner = *network->builder;
        // Before the configuration that points to it, so that it goes after.
        auto monitor = std::make_unique<Monitor>(options->progress, options->user);
        std::unique_ptr<nvinfer1::IBuilderConfig> config(owner.builder->createBuilderConfig());
        if (!config) return fail(kTurboTrtBuild, {}, "TensorRT makes no configuration");
        configure(*config, *options);
        if (options->progress != nullptr) config->setProgressMonitor(monitor.get());
        auto cache = useTimingCache(*config, *options);
        auto const* const timings = cache.get();
        if (cache) owner.timingCaches.push_back(std::move(cache));

        auto made = std::make_unique<TurboTrtPlan>();
        made->plan.reset(owner.builder->buildSerializedNetwork(*network->network, *config));
        if (monitor->stopped()) {
            monitor->leave();
            (void)monitor.release();
            (void)config.release();
            owner.stopped = true;
            return fail(kTurboTrtInterrupted, {}, "interrupted");
        }
        if (!made->plan) return fail(kTurboTrtBuild, {}, "TensorRT builds no plan");
        if (timings != nullptr) made->timingCache.reset(timings->serialize());
        *out = made.release();
        return int32_t{kTurboTrtOk};
    });
}

void turbo_trt_plan_destroy(TurboTrtPlan* plan) { delete plan; }

void turbo_trt_plan_bytes(TurboTrtPlan const* plan, void const** data, size_t* bytes) {
    *data = plan->plan->data();
    *bytes = plan->plan->size();
}

void turbo_trt_plan_timing_cache(TurboTrtPlan const* plan, void const** data, size_t* bytes) {
    *data = plan->timingCache ? plan->timingCache->data() : nullptr;
    *bytes = plan->timingCache ? plan->timingCache->size() : 0;
}
