// y = rope(rms_norm(x) * weight), rounded to T, and sums of 32 rows of y, in f32. A vector holds whole pairs of one
// head, so its angles are neighbours in the tables `[l, d/2]`.
//
// A CTA has the rows of one sum. Where one or four warps hold a row, several are done at a time and meet in shared
// memory, where threads add up columns; otherwise a row is the whole CTA's, whose threads have columns of their own. The
// next row is on its way meanwhile.
#include "../common/cuda/hopper.cuh"
#include "../common/cuda/norm.cuh"

namespace turbo {
namespace {

constexpr int32_t kWarps = 8;  // of a CTA, where one or four have a row
constexpr int32_t kThreads = kWarps * kWarp;
// Vectors of a row that a lane holds, and the widest row, where kSpan warps have it.
template <int32_t kSpan>
constexpr int32_t kVectors = kSpan == 1 ? 6 : 5;
template <class T, int32_t kSpan>
constexpr int32_t kWidest = kVectors<kSpan> * kSpan * kWarp * kWide<T>;
// CTAs for which a multiprocessor must have registers. With four, ptxas spills some where it compiles for sm_120.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 1000
template <int32_t kSpan>
constexpr int32_t kCtas = kSpan == 1 ? 4 : 3;
#else
template <int32_t kSpan>
constexpr int32_t kCtas = 3;
#endif

struct Arguments {
    void const* x;
    float const* weight;
    float const* cos;
    float const* sin;
    void* y;
    float* sums;
    int32_t width;
    int32_t length;
    int32_t headWidth;
    float eps;
};

// The rows of a CTA's sum.
struct Part {
    int64_t first;
    int32_t position;  // of the first in its sequence
    int32_t rows;

    __device__ __forceinline__ explicit Part(Arguments const& a) {
        uint32_t const parts = (a.length - 1) / kSumRows + 1;
        position = static_cast<int32_t>(blockIdx.x % parts) * kSumRows;
        first = static_cast<int64_t>(blockIdx.x / parts) * a.length + position;
        rows = min(kSumRows, a.length - position);
    }
};

// A vector of a row, normalised and turned.
template <bool wide, class T, int32_t kVector>
__device__ __forceinline__ Pack<T, kVector> turned(Arguments const& a, Pack<T, kVector> const& x, Moments const& moments,
                                                   int32_t position, int32_t column) {
    constexpr int32_t kPairs = kVector / 2;
    int64_t const angle = static_cast<int64_t>(position) * (a.headWidth / 2) + column % a.headWidth / 2;
    float weight[kVector], cos[kPairs], sin[kPairs];
    load<wide>(weight, a.weight + column);
    load<wide>(cos, a.cos + angle);
    load<wide>(sin, a.sin + angle);
    Pack<T, kVector> y;
#pragma unroll
    for (int32_t i = 0; i < kPairs; ++i) {
        float const x0 = normalize(static_cast<float>(x.at[2 * i]), moments, weight[2 * i], 0.0f);
        float const x1 = normalize(static_cast<float>(x.at[2 * i + 1]), moments, weight[2 * i + 1], 0.0f);
        y.at[2 * i] = static_cast<T>(x0 * cos[i] - x1 * sin[i]);
        y.at[2 * i + 1] = static_cast<T>(x0 * sin[i] + x1 * cos[i]);
    }
    return y;
}

template <class T, int32_t kSpan>
__global__ void __launch_bounds__(kThreads, kCtas<kSpan>) spanKernel(Arguments a) {
    constexpr int32_t kVector = kWide<T>, kRows = kWarps / kSpan;  // at a time
    constexpr int32_t kPairs = (kWidest<T, kSpan> / 2 - 1) / kThreads + 1;  // of columns, of a thread
    extern __shared__ uint4 shared[];  // [kRows, width]
    __shared__ float partial[kWarps];
    followKernelAhead();
    T* const rows = reinterpret_cast<T*>(shared);
    Part const part(a);
    int32_t const thread = static_cast<int32_t>(threadIdx.x), warp = thread / kWarp, place = warp / kSpan;
    int64_t const first = part.first * a.width;
    // Calls `visit(number of the vector, its first column)` for what the lane holds.
    auto const forEach = [&](auto visit) {
#pragma unroll
        for (int32_t i = 0; i < kVectors<kSpan>; ++i) {
            int32_t const column = (i * kSpan * kWarp + thread % (kSpan * kWarp)) * kVector;
            if (column < a.width) visit(i, column);
        }
    };
    Pack<T, kVector> row[kVectors<kSpan>];
    auto const read = [&](int32_t number) {
        if (number >= part.rows) return;
        T const* const from = static_cast<T const*>(a.x) + first + number * a.width;
        forEach([&](int32_t i, int32_t column) { load<true>(row[i], from + column); });
    };
    float sum[kPairs][2] = {};
    read(place);
    for (int32_t done = 0; done < part.rows; done += kRows) {
        int32_t const mine = done + place;
        float squares = 0.0f;
        forEach([&](int32_t i, int32_t) {
            keepPacked(row[i]);
#pragma unroll
            for (int32_t j = 0; j < kVector; ++j) {
                float const v = static_cast<float>(row[i].at[j]);
                squares = fmaf(v, v, squares);
            }
        });
        squares = warpSum(squares);
        if constexpr (kSpan > 1) {
            if (thread % kWarp == 0) partial[warp] = squares;
            __syncthreads();
            squares = 0.0f;
#pragma unroll
            for (int32_t i = 0; i < kSpan; ++i) squares += partial[place * kSpan + i];
        }
        Moments const moments{0.0f, __frsqrt_rn(squares / static_cast<float>(a.width) + a.eps)};
        if (mine < part.rows) {
            forEach([&](int32_t i, int32_t column) {
                keepPacked(row[i]);
                auto const to = turned<true>(a, row[i], moments, part.position + mine, column);
                store<true>(static_cast<T*>(a.y) + first + mine * a.width + column, to);
                store<true>(rows + place * a.width + column, to);
            });
        }
        read(mine + kRows);
        // All rows are there.
        __syncthreads();
        int32_t const count = min(kRows, part.rows - done);
#pragma unroll
        for (int32_t i = 0; i < kPairs; ++i) {
            int32_t const column = (i * kThreads + thread) * 2;
            if (column >= a.width) continue;
#pragma unroll
            for (int32_t j = 0; j < kRows; ++j) {
                if (j >= count) break;
                auto const pair = *reinterpret_cast<Pack<T, 2> const*>(rows + j * a.width + column);
                sum[i][0] += static_cast<float>(pair.at[0]);
                sum[i][1] += static_cast<float>(pair.at[1]);
            }
        }
        // Nobody needs them any more; where warps share a row, they meet before they write the next.
        if constexpr (kSpan == 1) __syncthreads();
    }
#pragma unroll
    for (int32_t i = 0; i < kPairs; ++i) {
        int32_t const column = (i * kThreads + thread) * 2;
        if (column < a.width) store<true>(a.sums + static_cast<int64_t>(blockIdx.x) * a.width + column, sum[i]);
    }
}

template <class R>
__global__ void __launch_bounds__(kRowThreadsMax) ctaRowsKernel(Arguments a) {
    using T = typename R::Element;
    constexpr int32_t kVector = R::kVector, kCount = R::kElements / kVector;
    constexpr bool kAccess = R::kWideAccess;
    // The widest rows leave no registers for the next one and for sums.
    constexpr bool kRoom = R::kElements < kHeldMax;
    using Vector = Pack<T, kVector>;
    __shared__ float partial[2][kWarpsMax];
    followKernelAhead();
    Part const part(a);
    auto const* x = static_cast<T const*>(a.x) + part.first * a.width;
    auto* y = static_cast<T*>(a.y) + part.first * a.width;
    // Calls `visit(number of the vector, its first column)` for what the thread holds.
    auto const forEach = [&](auto visit) {
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i) {
            int32_t const column = static_cast<int32_t>(i * blockDim.x + threadIdx.x) * kVector;
            if (column < a.width) visit(i, column);
        }
    };
    Vector row[kCount], next[kCount];
    float* const sums = a.sums + static_cast<int64_t>(blockIdx.x) * a.width;
    float sum[kRoom ? kCount : 1][kVector] = {};
    auto const read = [&](Vector(&to)[kCount]) {
        forEach([&](int32_t i, int32_t column) { load<kAccess>(to[i], x + column); });
        x += a.width;
    };
    read(row);
#pragma unroll 1
    for (int32_t i = 0; i < part.rows; ++i) {
        if (kRoom && i + 1 < part.rows) read(next);
        float squares = 0.0f;
        forEach([&](int32_t j, int32_t) {
#pragma unroll
            for (int32_t k = 0; k < kVector; ++k) {
                float const v = static_cast<float>(row[j].at[k]);
                squares = fmaf(v, v, squares);
            }
        });
        // Two, so that a sum that somebody still reads is not written.
        float const total = blockSum(squares, partial[i % 2]);
        Moments const moments{0.0f, __frsqrt_rn(total / static_cast<float>(a.width) + a.eps)};
        forEach([&](int32_t j, int32_t column) {
            keepPacked(row[j]);
            Vector const to = turned<kAccess>(a, row[j], moments, part.position + i, column);
            store<kAccess>(y + column, to);
#pragma unroll
            for (int32_t k = 0; k < kVector; ++k) {
                if constexpr (kRoom) {
                    sum[j][k] += static_cast<float>(to.at[k]);
                } else {
                    sums[column + k] = (i == 0 ? 0.0f : sums[column + k]) + static_cast<float>(to.at[k]);
                }
            }
        });
        y += a.width;
        if constexpr (kRoom) {
#pragma unroll
            for (int32_t j = 0; j < kCount; ++j) row[j] = next[j];
        } else if (i + 1 < part.rows) {
            read(row);
        }
    }
    if constexpr (kRoom) forEach([&](int32_t j, int32_t column) { store<kAccess>(sums + column, sum[j]); });
}

}  // namespace

Status prepare(TurboNormRope::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& x = call.in[TurboNormRope::kInX];
    if (attrs.heads <= 0) return {"`heads` must be positive"};
    if (x.dim[1] % (2 * static_cast<int64_t>(attrs.heads)) != 0) {
        return {"`heads` must divide axis `c` of `x` into heads of whole pairs"};
    }
    int64_t const length = call.in[TurboNormRope::kInCos].dim[0];
    if (length < 1 || x.dim[0] % length != 0) return {"axis `l` of `cos` must divide the rows of `x`"};
    return checkRows(x);
}

Status launch(TurboNormRope::Attrs const& attrs, Call const& call, void*, cudaStream_t stream) {
    Tensor const& x = call.in[TurboNormRope::kInX];
    Tensor const& weight = call.in[TurboNormRope::kInWeight];
    Tensor const& cos = call.in[TurboNormRope::kInCos];
    Tensor const& sin = call.in[TurboNormRope::kInSin];
    Tensor const& y = call.out[TurboNormRope::kOutY];
    Tensor const& sums = call.out[TurboNormRope::kOutSums];
    if (x.count() == 0) return {};
    int64_t const width = x.dim[1], headWidth = width / attrs.heads, length = cos.dim[0];
    Arguments const arguments{x.data,
                              static_cast<float const*>(weight.data),
                              static_cast<float const*>(cos.data),
                              static_cast<float const*>(sin.data),
                              y.data,
                              static_cast<float*>(sums.data),
                              static_cast<int32_t>(width),
                              static_cast<int32_t>(length),
                              static_cast<int32_t>(headWidth),
                              attrs.eps};
    Queue const queue = hopper::behind(stream);
    auto const ctas = static_cast<uint32_t>(x.dim[0] / length * ceilDiv(length, kSumRows));
    return withRow<2>(x.type, wideRows(x, headWidth, weight, cos, sin, y, sums), width, [&](auto tag) {
        using R = typename decltype(tag)::Type;
        using T = typename R::Element;
        auto const bySpans = [&](auto span) {
            constexpr int32_t kSpan = decltype(span)::value;
            size_t const shared = kWarps / kSpan * static_cast<size_t>(width) * sizeof(T);
            return enqueue(spanKernel<T, kSpan>, ctas, kThreads, shared, queue, arguments);
        };
        if constexpr (R::kWideAccess && sizeof(T) == 2) {
            if (width <= kWidest<T, 1>) return bySpans(std::integral_constant<int32_t, 1>{});
            if (width <= kWidest<T, 4>) return bySpans(std::integral_constant<int32_t, 4>{});
        }
        if constexpr (R::kWidest > (R::kWideAccess && sizeof(T) == 2 ? kWidest<T, 4> : 0)) {
            return enqueue(ctaRowsKernel<R>, ctas, R::threads(width), 0, queue, arguments);
        }
        // Narrower rows have gone above.
        return Status{};
    });
}

}  // namespace turbo
