// The dimension arithmetic of the op traits, over TensorRT's symbolic sizes and over numbers.
#pragma once

#include <string>

#include "log.h"
#include "op.h"

namespace turbo {

// Output shapes as expressions of the input shapes, while the network is built.
class Symbols {
public:
    using Size = trt::IDimensionExpr const*;

    Symbols(trt::DimsExprs const* in, trt::DimsExprs* out, trt::IExprBuilder& builder)
        : mIn(in), mOut(out), mBuilder(builder) {}

    Size in(int32_t i, int32_t d) const { return mIn[i].d[d]; }
    Size constant(int64_t value) const { return known(mBuilder.constant(value)); }
    Size mul(Size a, Size b) const { return known(mBuilder.operation(Operation::kPROD, *a, *b)); }
    Size div(Size a, Size b) const { return known(mBuilder.operation(Operation::kFLOOR_DIV, *a, *b)); }
    Size ceilDiv(Size a, Size b) const { return known(mBuilder.operation(Operation::kCEIL_DIV, *a, *b)); }
    void set(int32_t o, int32_t d, Size size) const { mOut[o].d[d] = size; }

private:
    using Operation = trt::DimensionOperation;

    static Size known(Size size) {
        if (!size) fail("TensorRT refused an expression of the output shapes");
        return size;
    }

    trt::DimsExprs const* mIn;
    trt::DimsExprs* mOut;
    trt::IExprBuilder& mBuilder;
};

// Compares the sizes of a call with those the traits demand, and keeps the first difference.
template <class Op>
class Sizes {
public:
    explicit Sizes(Call const& call) : mCall(call) {}

    int64_t in(int32_t i, int32_t d) const { return mCall.in[i].dim[d]; }
    int64_t constant(int64_t value) const { return value; }
    int64_t mul(int64_t a, int64_t b) const { return a < 0 || b < 0 ? kFraction : a * b; }
    int64_t div(int64_t a, int64_t b) const { return a < 0 || b < 1 || a % b != 0 ? kFraction : a / b; }
    int64_t ceilDiv(int64_t a, int64_t b) const { return a < 0 || b < 1 ? kFraction : (a + b - 1) / b; }

    void expect(int32_t i, int32_t d, int64_t size, char const* written) {
        check(Op::kInputNames[i], d, mCall.in[i].dim[d], size, written);
    }
    void set(int32_t o, int32_t d, int64_t size) {
        check(Op::kOutputNames[o], d, mCall.out[o].dim[d], size, "what the inputs give");
    }

    // Empty when all sizes agree.
    std::string const& wrong() const { return mWrong; }

private:
    // What a division that leaves a rest gives; no tensor has this size.
    static constexpr int64_t kFraction = -1;

    void check(char const* name, int32_t d, int64_t found, int64_t expected, char const* written) {
        if (found == expected || !mWrong.empty()) return;
        mWrong = std::string(name) + " axis " + std::to_string(d) + ": ";
        if (expected == kFraction) {
            mWrong += std::string(written) + " is no whole number";
        } else {
            mWrong += "expected " + std::to_string(expected) + " (" + written + ")";
            mWrong += ", found " + std::to_string(found);
        }
    }

    Call const& mCall;
    std::string mWrong;
};

}  // namespace turbo
