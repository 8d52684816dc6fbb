// One TensorRT plugin for every op: `Plugin<Op>` reads the generated traits of the op and calls its kernel.
// Tensors are linear, row-major and typed as the definition says; all tensors of type T of one node have one
// type, which the first input of that type gives, or the attribute `dtype` where no input has it.
#pragma once

#include <iterator>
#include <string>
#include <vector>

#include "fields.h"
#include "log.h"
#include "op.h"
#include "shapes.h"

namespace turbo {

constexpr char const* kNamespace = "turbo";

// The workspace's alignment that kernels rely on; TensorRT promises none.
constexpr size_t kWorkspaceAlignment = 256;

inline DType elementType(trt::DataType type) {
    switch (type) {
    case trt::DataType::kFLOAT: return DType::kF32;
    case trt::DataType::kBF16: return DType::kBF16;
    case trt::DataType::kHALF: return DType::kF16;
    case trt::DataType::kINT8: return DType::kI8;
    case trt::DataType::kINT32: return DType::kI32;
    default: fail("no op has TensorRT's type " + std::to_string(static_cast<int32_t>(type)));
    }
}

inline bool isActivation(trt::DataType type) {
    return type == trt::DataType::kFLOAT || type == trt::DataType::kBF16 ||
           type == trt::DataType::kHALF;
}

// The activation type that the attribute `dtype` names, where the op has it.
template <class Attrs>
auto declaredActivation(Attrs const& attrs, int) -> decltype(attrs.dtype, trt::DataType()) {
    constexpr trt::DataType kTypes[] = {trt::DataType::kFLOAT, trt::DataType::kBF16,
                                             trt::DataType::kHALF};
    return kTypes[attrs.dtype.index];
}
template <class Attrs>
trt::DataType declaredActivation(Attrs const&, long) {
    return trt::DataType::kFLOAT;
}

inline Tensor tensorOf(trt::PluginTensorDesc const& desc, void const* data) {
    if (desc.dims.nbDims < 0 || desc.dims.nbDims > kMaxRank) {
        fail("a tensor has " + std::to_string(desc.dims.nbDims) + " axes");
    }
    Tensor tensor{elementType(desc.type), desc.dims.nbDims, {}, const_cast<void*>(data)};
    for (int32_t d = 0; d < tensor.rank; ++d) tensor.dim[d] = desc.dims.d[d];
    return tensor;
}

// With the largest size of the profile in place of every size that is not known while building.
inline Tensor tensorOf(trt::DynamicPluginTensorDesc const& dynamic) {
    trt::PluginTensorDesc desc = dynamic.desc;
    for (int32_t d = 0; d < desc.dims.nbDims; ++d) {
        if (desc.dims.d[d] < 0) desc.dims.d[d] = dynamic.max.d[d];
    }
    return tensorOf(desc, nullptr);
}

inline bool isStatic(trt::PluginTensorDesc const& desc) {
    for (int32_t d = 0; d < desc.dims.nbDims; ++d) {
        if (desc.dims.d[d] < 0) return false;
    }
    return true;
}

// "x bf16 [1, 4096, 1536]"
std::string describe(char const* name, Tensor const& tensor);

// ", compute capability 9.0" of the calling thread's device; empty where there is none.
std::string describeDevice();

template <class Op>
class Plugin final : public trt::IPluginV3,
                     public trt::IPluginV3OneCore,
                     public trt::IPluginV3OneBuild,
                     public trt::IPluginV3OneRuntime {
public:
    explicit Plugin(typename Op::Attrs const& attrs) : mAttrs(attrs) {}

    trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override {
        switch (type) {
        case trt::PluginCapabilityType::kCORE: return static_cast<trt::IPluginV3OneCore*>(this);
        case trt::PluginCapabilityType::kBUILD: return static_cast<trt::IPluginV3OneBuild*>(this);
        case trt::PluginCapabilityType::kRUNTIME: return static_cast<trt::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    trt::IPluginV3* clone() noexcept override {
        return guarded<trt::IPluginV3*>(Op::kName, nullptr, [&] { return new Plugin(mAttrs); });
    }

    trt::AsciiChar const* getPluginName() const noexcept override { return Op::kName; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return kOutputs; }

    int32_t getOutputDataTypes(trt::DataType* outputTypes, int32_t nbOutputs,
                               trt::DataType const* inputTypes, int32_t nbInputs) const noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            checkCounts(nbInputs, nbOutputs);
            auto const activation = activationType([&](int32_t i) { return inputTypes[i]; });
            for (int32_t o = 0; o < kOutputs; ++o) outputTypes[o] = concrete(Op::kOutputTypes[o], activation);
            return 0;
        });
    }

    int32_t getOutputShapes(trt::DimsExprs const* inputs, int32_t nbInputs, trt::DimsExprs const*, int32_t,
                            trt::DimsExprs* outputs, int32_t nbOutputs,
                            trt::IExprBuilder& builder) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            checkCounts(nbInputs, nbOutputs);
            for (int32_t i = 0; i < kInputs; ++i) {
                checkRank(Op::kInputNames[i], Op::kInputRanks[i], inputs[i].nbDims);
            }
            for (int32_t o = 0; o < kOutputs; ++o) outputs[o].nbDims = Op::kOutputRanks[o];
            Symbols symbols(inputs, outputs, builder);
            Op::outputShapes(symbols, mAttrs);
            return 0;
        });
    }

    // Asked position by position, inputs before outputs; earlier positions are settled.
    bool supportsFormatCombination(int32_t pos, trt::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override {
        if (nbInputs != kInputs || nbOutputs != kOutputs) return false;
        auto const& desc = inOut[pos].desc;
        if (desc.format != trt::TensorFormat::kLINEAR) return false;
        if (pos == kFirstActivation) return isActivation(desc.type);
        auto const activation = activationType([&](int32_t i) { return inOut[i].desc.type; });
        Type const type = pos < kInputs ? Op::kInputTypes[pos] : Op::kOutputTypes[pos - kInputs];
        return desc.type == concrete(type, activation);
    }

    int32_t configurePlugin(trt::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                            trt::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            checkCounts(nbInputs, nbOutputs);
            workspace(in, out);
            return 0;
        });
    }

    size_t getWorkspaceSize(trt::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                            trt::DynamicPluginTensorDesc const* out,
                            int32_t nbOutputs) const noexcept override {
        return guarded(Op::kName, size_t{0}, [&] {
            checkCounts(nbInputs, nbOutputs);
            size_t const bytes = workspace(in, out);
            return bytes == 0 ? 0 : bytes + kWorkspaceAlignment - 1;
        });
    }

    // Also called when nothing but an address changed.
    int32_t onShapeChange(trt::PluginTensorDesc const* in, int32_t nbInputs,
                          trt::PluginTensorDesc const* out, int32_t nbOutputs) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            checkCounts(nbInputs, nbOutputs);
            Node node;
            for (int32_t i = 0; i < kInputs; ++i) node.in[i] = tensorOf(in[i], nullptr);
            for (int32_t o = 0; o < kOutputs; ++o) node.out[o] = tensorOf(out[o], nullptr);
            if (allStatic(in, out)) node.check(mAttrs);
            return 0;
        });
    }

    int32_t enqueue(trt::PluginTensorDesc const* inputDesc, trt::PluginTensorDesc const* outputDesc,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        return guarded(Op::kName, kFailed, [&] {
            Node node;
            for (int32_t i = 0; i < kInputs; ++i) node.in[i] = tensorOf(inputDesc[i], inputs[i]);
            for (int32_t o = 0; o < kOutputs; ++o) node.out[o] = tensorOf(outputDesc[o], outputs[o]);
            node.check(mAttrs);
            auto const address = reinterpret_cast<uintptr_t>(workspace) + kWorkspaceAlignment - 1;
            auto* const aligned = reinterpret_cast<void*>(address - address % kWorkspaceAlignment);
            node.done(launch(mAttrs, node.call(), aligned, stream));
            return 0;
        });
    }

    trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override { return clone(); }

    trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return guarded<trt::PluginFieldCollection const*>(Op::kName, nullptr, [&] {
            mFields = fieldsOf(mAttrs);
            mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
            return &mCollection;
        });
    }

private:
    static constexpr int32_t kFailed = -1;
    static constexpr int32_t kInputs = static_cast<int32_t>(std::size(Op::kInputTypes));
    static constexpr int32_t kOutputs = static_cast<int32_t>(std::size(Op::kOutputTypes));

    static constexpr int32_t firstActivation() {
        for (int32_t i = 0; i < kInputs; ++i) {
            if (Op::kInputTypes[i] == Type::kT) return i;
        }
        return -1;
    }
    // The input that gives the activation type; -1 where none does.
    static constexpr int32_t kFirstActivation = firstActivation();

    // The tensors of this node at one moment.
    struct Node {
        Tensor in[kInputs];
        Tensor out[kOutputs];

        Call call() const { return {in, out}; }

        void check(typename Op::Attrs const& attrs) const {
            for (int32_t i = 0; i < kInputs; ++i) {
                checkRank(Op::kInputNames[i], Op::kInputRanks[i], in[i].rank);
            }
            for (int32_t o = 0; o < kOutputs; ++o) {
                checkRank(Op::kOutputNames[o], Op::kOutputRanks[o], out[o].rank);
            }
            Call const sizes = call();
            Sizes<Op> shapes(sizes);
            Op::inputShapes(shapes, attrs);
            Op::outputShapes(shapes, attrs);
            if (!shapes.wrong().empty()) fail(shapes.wrong() + "; " + describe());
        }

        void done(Status const& status) const {
            if (status.ok()) return;
            std::string text = status.what ? status.what : "the kernel could not be launched";
            if (status.cuda != cudaSuccess) text += std::string(": ") + cudaGetErrorString(status.cuda);
            fail(text + "; " + describe());
        }

        std::string describe() const {
            std::string text;
            for (int32_t i = 0; i < kInputs; ++i) text += turbo::describe(Op::kInputNames[i], in[i]) + ", ";
            text += "to ";
            for (int32_t o = 0; o < kOutputs; ++o) {
                text += (o ? ", " : "") + turbo::describe(Op::kOutputNames[o], out[o]);
            }
            return text + describeDevice();
        }
    };

    static void checkCounts(int32_t nbInputs, int32_t nbOutputs) {
        if (nbInputs == kInputs && nbOutputs == kOutputs) return;
        fail("expected " + std::to_string(kInputs) + " inputs and " + std::to_string(kOutputs) +
             " outputs, found " + std::to_string(nbInputs) + " and " + std::to_string(nbOutputs));
    }

    static void checkRank(char const* name, int32_t expected, int32_t found) {
        if (expected == found) return;
        fail(std::string(name) + ": expected " + std::to_string(expected) + " axes, found " +
             std::to_string(found));
    }

    template <class InputType>
    trt::DataType activationType(InputType&& inputType) const {
        if constexpr (kFirstActivation >= 0) {
            return inputType(kFirstActivation);
        } else {
            return declaredActivation(mAttrs, 0);
        }
    }

    static trt::DataType concrete(Type type, trt::DataType activation) {
        switch (type) {
        case Type::kT: return activation;
        case Type::kF32: return trt::DataType::kFLOAT;
        case Type::kI8: return trt::DataType::kINT8;
        case Type::kI32: return trt::DataType::kINT32;
        }
        return activation;
    }

    static bool allStatic(trt::PluginTensorDesc const* in, trt::PluginTensorDesc const* out) {
        bool known = true;
        for (int32_t i = 0; i < kInputs; ++i) known = known && isStatic(in[i]);
        for (int32_t o = 0; o < kOutputs; ++o) known = known && isStatic(out[o]);
        return known;
    }

    // Bytes that the kernel needs at the largest sizes of the profile.
    size_t workspace(trt::DynamicPluginTensorDesc const* in,
                     trt::DynamicPluginTensorDesc const* out) const {
        Node node;
        bool known = true;
        for (int32_t i = 0; i < kInputs; ++i) {
            node.in[i] = tensorOf(in[i]);
            known = known && isStatic(in[i].desc);
        }
        for (int32_t o = 0; o < kOutputs; ++o) {
            node.out[o] = tensorOf(out[o]);
            known = known && isStatic(out[o].desc);
        }
        // Upper bounds of separate tensors need not fit each other; sizes do.
        if (known) node.check(mAttrs);
        size_t bytes = 0;
        node.done(prepare(mAttrs, node.call(), &bytes));
        return bytes;
    }

    typename Op::Attrs mAttrs;
    std::vector<trt::PluginField> mFields;
    trt::PluginFieldCollection mCollection{};
};

template <class Op>
class Creator final : public trt::IPluginCreatorV3One {
public:
    Creator() {
        typename Op::Attrs attrs{};
        mFields = fieldsOf(attrs);
        for (auto& field : mFields) field = {field.name, nullptr, field.type, 0};
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    trt::IPluginV3* createPlugin(trt::AsciiChar const* name, trt::PluginFieldCollection const* fields,
                                      trt::TensorRTPhase) noexcept override {
        return guarded<trt::IPluginV3*>(Op::kName, nullptr, [&] {
            typename Op::Attrs attrs{};
            try {
                attrs.visit(FieldReader{fields ? *fields : trt::PluginFieldCollection{}});
            } catch (std::runtime_error const& error) {
                fail("node \"" + std::string(name ? name : "") + "\": " + error.what());
            }
            return new Plugin<Op>(attrs);
        });
    }

    // The parser passes the attributes named here and no others.
    trt::PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }

    trt::AsciiChar const* getPluginName() const noexcept override { return Op::kName; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    std::vector<trt::PluginField> mFields;
    trt::PluginFieldCollection mCollection{};
};

}  // namespace turbo
