// A node: an op and its attributes, checked against the op's definition. One template over the generated
// traits (plugins/generated) stands for all ops.
#pragma once

#include <cmath>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <variant>

#include "../../ops/common/cuda/op.h"

namespace turbo {

// A failure, as text for the caller.
struct Error {
    std::string what;
};

inline void check(cudaError_t code, char const* action) {
    if (code == cudaSuccess) return;
    // What is reported here is not to be found again by whoever asks next.
    cudaGetLastError();
    throw Error{std::string(action) + ": " + cudaGetErrorName(code) + ", " + cudaGetErrorString(code)};
}

// The value of an attribute as a caller gives it.
using Value = std::variant<int64_t, float, std::string>;

inline std::string describe(Value const& value) {
    if (auto const* v = std::get_if<int64_t>(&value)) return "integer " + std::to_string(*v);
    if (auto const* v = std::get_if<float>(&value)) return "float " + std::to_string(*v);
    return "word `" + std::get<std::string>(value) + "`";
}

inline char const* name(DType type) {
    constexpr char const* kNames[] = {"f32", "bf16", "f16", "i8", "i32"};
    return kNames[static_cast<int32_t>(type)];
}

// Visits attributes and sets the one of that name.
struct Setter {
    char const* wanted;
    Value const& value;
    bool found = false;

    void operator()(char const* name, int32_t& attr) {
        if (name != std::string(wanted)) return;
        auto const* v = std::get_if<int64_t>(&value);
        if (v == nullptr || *v <= 0 || *v > INT32_MAX) fail("a positive 32-bit integer");
        attr = static_cast<int32_t>(*v);
        found = true;
    }
    void operator()(char const* name, float& attr) {
        if (name != std::string(wanted)) return;
        auto const* v = std::get_if<float>(&value);
        if (v == nullptr || !std::isfinite(*v)) fail("a finite float");
        attr = *v;
        found = true;
    }
    void operator()(char const* name, Word& attr, std::initializer_list<char const*> words) {
        if (name != std::string(wanted)) return;
        auto const* v = std::get_if<std::string>(&value);
        std::string expected;
        int32_t index = 0;
        for (char const* word : words) {
            if (v != nullptr && *v == word) {
                attr.index = index;
                found = true;
                return;
            }
            expected += (index++ == 0 ? "one of " : ", ") + std::string(word);
        }
        fail(expected);
    }

    [[noreturn]] void fail(std::string const& expected) const {
        std::string const subject = std::string("attribute `") + wanted + "`";
        throw Error{subject + " must be " + expected + ", found " + describe(value)};
    }
};

// Visits attributes and finds one that was not set, and the activation type of ops whose inputs do not tell
// it.
struct Reader {
    std::set<std::string> const& known;
    std::string missing;
    int32_t dtype = -1;

    void operator()(char const* name, int32_t&) { see(name); }
    void operator()(char const* name, float&) { see(name); }
    void operator()(char const* name, Word& attr, std::initializer_list<char const*>) {
        see(name);
        if (name == std::string("dtype")) dtype = attr.index;
    }

private:
    void see(char const* name) {
        if (known.count(name) == 0) missing = name;
    }
};

// Evaluates the sizes that a definition writes down and compares them with those of a call. kNone is a size
// that is not whole or cannot be represented.
template <class Op>
struct Sizes {
    static constexpr int64_t kNone = -1;
    Call const& call;

    int64_t in(int32_t i, int32_t d) const { return call.in[i].dim[d]; }
    int64_t constant(int64_t value) const { return value; }
    int64_t mul(int64_t a, int64_t b) const {
        int64_t product = 0;
        return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? kNone : product;
    }
    int64_t ceilDiv(int64_t a, int64_t b) const { return a < 0 || b <= 0 ? kNone : a / b + (a % b != 0); }
    int64_t div(int64_t a, int64_t b) const { return a < 0 || b <= 0 || a % b != 0 ? kNone : a / b; }

    void expect(int32_t i, int32_t d, int64_t size, char const* written) const {
        if (size == in(i, d)) return;
        fail(Op::kInputNames[i], d, size, in(i, d), " (" + std::string(written) + ")");
    }
    void set(int32_t o, int32_t d, int64_t size) const {
        if (size != call.out[o].dim[d]) fail(Op::kOutputNames[o], d, size, call.out[o].dim[d], "");
    }

private:
    [[noreturn]] static void fail(char const* tensor, int32_t d, int64_t size, int64_t found,
                                  std::string const& written) {
        std::string const expected = size < 0 ? "nothing whole" : std::to_string(size);
        std::string const subject = "axis " + std::to_string(d) + " of `" + tensor + "`";
        throw Error{subject + " must be " + expected + written + ", found " + std::to_string(found)};
    }
};

class Node {
public:
    virtual ~Node() = default;
    virtual void set(char const* name, Value const& value) = 0;
    // Throws what is wrong with the attributes or with the number, ranks, types and sizes of the tensors.
    virtual void check(Call const& call, int32_t ins, int32_t outs) = 0;
    // Only after `check`.
    virtual size_t prepare(Call const& call) const = 0;
    virtual void launch(Call const& call, void* workspace, cudaStream_t stream) const = 0;
};

template <class Op>
class NodeOf final : public Node {
public:
    void set(char const* name, Value const& value) override {
        Setter setter{name, value};
        attrs_.visit(setter);
        if (!setter.found) throw Error{std::string("has no attribute `") + name + "`"};
        known_.insert(name);
    }

    void check(Call const& call, int32_t ins, int32_t outs) override {
        Reader reader{known_, {}};
        attrs_.visit(reader);
        if (!reader.missing.empty()) throw Error{"attribute `" + reader.missing + "` is not set"};
        expectCount(ins, std::size(Op::kInputTypes), "inputs");
        expectCount(outs, std::size(Op::kOutputTypes), "outputs");
        int32_t activation = reader.dtype;
        for (int32_t i = 0; i < ins; ++i) {
            expectTensor(call.in[i], Op::kInputNames[i], Op::kInputTypes[i], Op::kInputRanks[i],
                         activation);
        }
        for (int32_t o = 0; o < outs; ++o) {
            expectTensor(call.out[o], Op::kOutputNames[o], Op::kOutputTypes[o], Op::kOutputRanks[o],
                         activation);
        }
        Sizes<Op> sizes{call};
        Op::inputShapes(sizes, attrs_);
        Op::outputShapes(sizes, attrs_);
    }

    size_t prepare(Call const& call) const override {
        size_t bytes = 0;
        expectOk(turbo::prepare(attrs_, call, &bytes), "prepare");
        return bytes;
    }

    void launch(Call const& call, void* workspace, cudaStream_t stream) const override {
        expectOk(turbo::launch(attrs_, call, workspace, stream), "launch");
        turbo::check(cudaGetLastError(), "launch");
    }

private:
    typename Op::Attrs attrs_{};
    std::set<std::string> known_;

    static void expectOk(Status const& status, char const* action) {
        if (status.what != nullptr) throw Error{status.what};
        turbo::check(status.cuda, action);
    }

    static void expectCount(int32_t found, size_t expected, char const* what) {
        if (found >= 0 && static_cast<size_t>(found) == expected) return;
        throw Error{"takes " + std::to_string(expected) + " " + what + ", found " + std::to_string(found)};
    }

    // The first tensor of the activation type decides it, unless an attribute has.
    static void expectTensor(Tensor const& x, char const* tensor, Type type, int32_t rank,
                             int32_t& activation) {
        std::string const subject = std::string("`") + tensor + "` must ";
        if (x.rank != rank) {
            throw Error{subject + "have rank " + std::to_string(rank) + ", found " + std::to_string(x.rank)};
        }
        if (type == Type::kT && activation < 0) activation = static_cast<int32_t>(x.type);
        if (type == Type::kT && activation > static_cast<int32_t>(DType::kF16)) {
            throw Error{subject + "be f32, bf16 or f16, found " + name(x.type)};
        }
        DType const expected = type == Type::kT     ? static_cast<DType>(activation)
                               : type == Type::kF32 ? DType::kF32
                               : type == Type::kI8  ? DType::kI8
                                                    : DType::kI32;
        if (x.type != expected) throw Error{subject + "be " + name(expected) + ", found " + name(x.type)};
    }
};

// Null for an unknown op.
inline std::unique_ptr<Node> makeNode(std::string const& op) {
#define TURBO_MAKE(Op) \
    if (op == Op::kName) return std::make_unique<NodeOf<Op>>();
    TURBO_OPS(TURBO_MAKE)
#undef TURBO_MAKE
    return nullptr;
}

}  // namespace turbo
