// lut = top-k of mean_pool(q) . mean_pool(k - mean(k)), ascending. TurboDiffusion `SLA/utils.py`
// (`get_block_map`); SLA, arXiv:2509.24006.
//
// All in f64, so that blocks are ordered as the reference orders them: sums of blocks of rows
// `[b, blocks, c]`; means of key blocks less the mean of all keys, turned to `[b, c, blocks]` so that threads
// side by side read keys side by side; then a CTA scores a few query blocks of one head against every key
// block, and a warp selects for each query block.
#include <algorithm>

#include "../common/cuda/elements.cuh"

namespace turbo {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kTurn = 32;             // channels and blocks that are turned at once
constexpr int32_t kQueriesMax = 8;        // query blocks of a CTA, one warp each
constexpr int32_t kShared = 96 * 1024;
constexpr int32_t kScoredMax = kShared / static_cast<int32_t>(sizeof(double));
static_assert(kQueriesMax * kWarp <= kThreads);

// One thread per sum.
template <class T>
__global__ void __launch_bounds__(kThreads) sumKernel(T const* x, double* sums, int64_t count, int64_t l,
                                                      int64_t c, int64_t block) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index >= count) return;
    int64_t const blocks = (l + block - 1) / block;
    int64_t const channel = index % c, batch = index / c / blocks;
    int64_t const first = index / c % blocks * block;
    int32_t const rows = static_cast<int32_t>(min(block, l - first));
    T const* const from = x + (batch * l + first) * c + channel;
    double sum = 0.0;
#pragma unroll 8
    for (int32_t i = 0; i < rows; ++i) sum += static_cast<double>(static_cast<float>(from[i * c]));
    sums[index] = sum;
}

// One CTA per batch entry and `kTurn` channels: lanes are channels, warps take blocks in turn.
__global__ void __launch_bounds__(kTurn * kTurn) centerKernel(double const* sums, double* keys, int32_t l,
                                                              int32_t c, int32_t block) {
    __shared__ double partial[kTurn][kTurn];
    __shared__ double tile[kTurn][kTurn + 1];
    int32_t const thread = static_cast<int32_t>(threadIdx.x), lane = thread % kTurn, warp = thread / kTurn;
    int32_t const blocks = (l - 1) / block + 1, across = (c - 1) / kTurn + 1;
    int32_t const channels = static_cast<int32_t>(blockIdx.x) % across * kTurn, channel = channels + lane;
    int64_t const batch = static_cast<int32_t>(blockIdx.x) / across;
    double const* const from = sums + batch * blocks * c + channel;

    double sum = 0.0;
    if (channel < c) {
        for (int32_t i = warp; i < blocks; i += kTurn) sum += from[static_cast<int64_t>(i) * c];
    }
    partial[warp][lane] = sum;
    __syncthreads();
    double center = 0.0;
    for (int32_t i = 0; i < kTurn; ++i) center += partial[i][lane];
    center /= l;

    for (int32_t first = 0; first < blocks; first += kTurn) {
        int32_t const index = first + warp;
        if (channel < c && index < blocks) {
            int32_t const rows = min(block, l - index * block);
            tile[warp][lane] = from[static_cast<int64_t>(index) * c] / rows - center;
        }
        __syncthreads();
        if (channels + warp < c && first + lane < blocks) {
            keys[(batch * c + channels + warp) * blocks + first + lane] = tile[lane][warp];
        }
        __syncthreads();
    }
}

// Unsigned integers in the order of doubles; NaN lies beyond the infinity of its sign, so the order is total.
__device__ __forceinline__ uint64_t ordered(double x) {
    auto const bits = static_cast<uint64_t>(__double_as_longlong(x));
    return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

// How many of the scores satisfy the predicate, in every lane.
template <class Predicate>
__device__ __forceinline__ uint32_t countIf(uint64_t const* scores, int32_t count, Predicate predicate) {
    uint32_t found = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x) % kWarp; i < count; i += kWarp) {
        found += predicate(scores[i]);
    }
    return __reduce_add_sync(kAllLanes, found);
}

// One warp writes the places of the `keep` largest scores, ascending; of equal ones the lower. 1 <= keep <=
// count.
__device__ __forceinline__ void select(uint64_t const* scores, int32_t count, uint32_t keep, int32_t* lut) {
    // The largest threshold, bit by bit, that at least `keep` scores reach: the keep-th largest score, or one
    // below it that no further score reaches.
    uint64_t threshold = 0;
    for (int32_t bit = 63; bit >= 0; --bit) {
        uint64_t const next = threshold | uint64_t{1} << bit;
        uint32_t const reach = countIf(scores, count, [=](uint64_t x) { return x >= next; });
        if (reach >= keep) threshold = next;
        if (reach == keep) break;
    }
    uint32_t ties = keep - countIf(scores, count, [=](uint64_t x) { return x > threshold; });
    uint32_t const lane = threadIdx.x % kWarp, below = (1u << lane) - 1;
    for (int32_t first = 0; first < count; first += kWarp) {
        int32_t const i = first + static_cast<int32_t>(lane);
        uint64_t const score = i < count ? scores[i] : 0;
        uint32_t const equal = __ballot_sync(kAllLanes, i < count && score == threshold);
        bool const tie = (equal >> lane & 1) && static_cast<uint32_t>(__popc(equal & below)) < ties;
        bool const taken = tie || (i < count && score > threshold);
        uint32_t const all = __ballot_sync(kAllLanes, taken);
        if (taken) lut[__popc(all & below)] = i;
        lut += __popc(all);
        ties -= min(ties, static_cast<uint32_t>(__popc(equal)));
    }
}

struct Arguments {
    double const* queries;  // sums, [b, blocksQ, c]
    double const* keys;     // centered means, [b, c, blocksK]
    int32_t* lut;
    int32_t l, c, heads, blocksQ, blocksK, blockQ, keep;
};

// One CTA per batch entry, head and `kQueries` query blocks.
template <int32_t kQueries>
__global__ void __launch_bounds__(kThreads, 2) mapKernel(Arguments a) {
    using Queries = Pack<double, kQueries>;
    extern __shared__ __align__(16) unsigned char shared[];
    int32_t const d = a.c / a.heads;
    auto* const queries = reinterpret_cast<Queries*>(shared);                // [d]
    auto* const scores = reinterpret_cast<uint64_t*>(queries + d);           // [kQueries, blocksK]
    int32_t const groups = (a.blocksQ + kQueries - 1) / kQueries;
    int32_t const head = static_cast<int32_t>(blockIdx.x) / groups;          // of all batch entries
    int32_t const first = static_cast<int32_t>(blockIdx.x) % groups * kQueries;
    int64_t const batch = head / a.heads;
    int32_t const channel = head % a.heads * d;

    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < d * kQueries; i += kThreads) {
        int32_t const query = first + i / d;
        double mean = 0.0;
        if (query < a.blocksQ) {
            double const sum = a.queries[(batch * a.blocksQ + query) * a.c + channel + i % d];
            mean = sum / min(a.blockQ, a.l - query * a.blockQ);
        }
        queries[i % d].at[i / d] = mean;
    }
    __syncthreads();

    double const* const keys = a.keys + (batch * a.c + channel) * a.blocksK;
    for (int32_t key = static_cast<int32_t>(threadIdx.x); key < a.blocksK; key += kThreads) {
        double sum[kQueries] = {};
#pragma unroll 4
        for (int32_t i = 0; i < d; ++i) {
            double const k = keys[static_cast<int64_t>(i) * a.blocksK + key];
            Queries const q = queries[i];
#pragma unroll
            for (int32_t j = 0; j < kQueries; ++j) sum[j] = fma(q.at[j], k, sum[j]);
        }
#pragma unroll
        for (int32_t j = 0; j < kQueries; ++j) scores[j * a.blocksK + key] = ordered(sum[j]);
    }
    __syncthreads();

    int32_t const warp = static_cast<int32_t>(threadIdx.x) / kWarp, query = first + warp;
    if (warp < kQueries && query < a.blocksQ) {
        int32_t* const lut = a.lut + (static_cast<int64_t>(head) * a.blocksQ + query) * a.keep;
        select(scores + warp * a.blocksK, a.blocksK, static_cast<uint32_t>(a.keep), lut);
    }
}

template <int32_t kQueries>
void map(Arguments const& a, int64_t batch, cudaStream_t stream) {
    int32_t const scored = a.c / a.heads + a.blocksK;
    if constexpr (kQueries > 1) {
        if (scored > kScoredMax / kQueries) return map<kQueries / 2>(a, batch, stream);
    }
    int32_t const bytes = kQueries * scored * static_cast<int32_t>(sizeof(double));
    cudaFuncSetAttribute(mapKernel<kQueries>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    auto const groups = static_cast<uint32_t>(batch * a.heads * ceilDiv(a.blocksQ, kQueries));
    mapKernel<kQueries><<<groups, kThreads, bytes, stream>>>(a);
}

// Sizes and the workspace.
struct Plan {
    int64_t b, l, c, blocksQ, blocksK;
    size_t queries, sums, keys;  // bytes, each a multiple of 256

    Plan(TurboBlockMap::Attrs const& attrs, Tensor const& q)
        : b(attrs.batch),
          l(q.dim[0] / b),
          c(q.dim[1]),
          blocksQ(ceilDiv(l, attrs.block_q)),
          blocksK(ceilDiv(l, attrs.block_k)),
          queries(bytes(b * blocksQ * c)),
          sums(bytes(b * blocksK * c)),
          keys(sums) {}

    static size_t bytes(int64_t count) { return static_cast<size_t>(ceilDiv(count, 32)) * 256; }
};

template <class T>
void sum(Tensor const& x, double* sums, Plan const& plan, int64_t blocks, int64_t block,
         cudaStream_t stream) {
    int64_t const count = plan.b * blocks * plan.c;
    sumKernel<T><<<static_cast<uint32_t>(ceilDiv(count, kThreads)), kThreads, 0, stream>>>(
        static_cast<T const*>(x.data), sums, count, plan.l, plan.c, block);
}

}  // namespace

Status prepare(TurboBlockMap::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& q = call.in[TurboBlockMap::kInQ];
    if (attrs.batch <= 0 || attrs.heads <= 0 || attrs.block_q <= 0 || attrs.block_k <= 0) {
        return {"`batch`, `heads`, `block_q` and `block_k` must be positive"};
    }
    if (q.dim[0] % attrs.batch != 0) return {"`batch` must divide the rows of `q`"};
    if (q.dim[1] == 0 || q.dim[1] % attrs.heads != 0) return {"`heads` must divide axis `c` of `q`"};
    Plan const plan(attrs, q);
    if (attrs.keep < 0 || attrs.keep > plan.blocksK) return {"`keep` must be 0 to the number of key blocks"};
    if (plan.c / attrs.heads + plan.blocksK > kScoredMax) {
        return {"key blocks and channels of a head must together be at most 12288"};
    }
    int64_t const most = std::max(plan.blocksQ, plan.blocksK);
    if (plan.l > INT32_MAX / 2 || plan.b * plan.c * most > INT32_MAX) {
        return {"`q` must have fewer than 2^30 tokens and 2^31 pooled values"};
    }
    *bytes = plan.queries + plan.sums + plan.keys;
    return {};
}

Status launch(TurboBlockMap::Attrs const& attrs, Call const& call, void* workspace, cudaStream_t stream) {
    Tensor const& q = call.in[TurboBlockMap::kInQ];
    Tensor const& k = call.in[TurboBlockMap::kInK];
    Tensor const& lut = call.out[TurboBlockMap::kOutLut];
    if (lut.count() == 0) return {};
    Plan const plan(attrs, q);
    auto* const queries = static_cast<double*>(workspace);
    auto* const sums = queries + plan.queries / sizeof(double);
    auto* const keys = sums + plan.sums / sizeof(double);
    auto const l = static_cast<int32_t>(plan.l), c = static_cast<int32_t>(plan.c);
    Arguments const arguments{queries,
                              keys,
                              static_cast<int32_t*>(lut.data),
                              l,
                              c,
                              attrs.heads,
                              static_cast<int32_t>(plan.blocksQ),
                              static_cast<int32_t>(plan.blocksK),
                              attrs.block_q,
                              attrs.keep};
    return withType(q.type, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        sum<T>(q, queries, plan, plan.blocksQ, attrs.block_q, stream);
        sum<T>(k, sums, plan, plan.blocksK, attrs.block_k, stream);
        auto const turns = static_cast<uint32_t>(plan.b * ceilDiv(c, kTurn));
        centerKernel<<<turns, kTurn * kTurn, 0, stream>>>(sums, keys, l, c, attrs.block_k);
        map<kQueriesMax>(arguments, plan.b, stream);
    });
}

}  // namespace turbo
