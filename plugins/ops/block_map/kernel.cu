// lut = top-k of mean_pool(q) . mean_pool(k - mean(k)), ascending. TurboDiffusion `SLA/utils.py`
// (`get_block_map`); SLA, arXiv:2509.24006.
//
// All in f64, so that blocks are ordered as the reference orders them: means of blocks, from sums of rows; scores, a
// product of the f64 tensor cores; and a warp that selects for each query block. Not the mean of all keys is subtracted
// but the first key: either moves all scores of a query block alike, and without what keys have in common they differ
// early in their bits, which selection needs.
//
// Scores pass through the workspace, a slab of tiles at a time, as a plane of high and one of low words: selection
// seldom reads the low ones.
#include <algorithm>

#include "../common/cuda/elements.cuh"
#include "../common/cuda/hopper.cuh"

namespace turbo {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kWarps = kThreads / kWarp;
constexpr int32_t kQueries = 64;             // query blocks of a tile
constexpr int32_t kWarpKeys = 16;            // key blocks of a warp's part of a tile
constexpr int32_t kKeys = kWarps * kWarpKeys;
constexpr int32_t kStep = 8;                 // channels of a product
constexpr int32_t kDepth = 64;               // channels of queries in shared memory
constexpr int32_t kScoresMax = 1 << 24;      // of a slab
constexpr int32_t kHeld = 40;                // high words that a lane keeps in registers
constexpr int32_t kHeldStep = 8;
constexpr int32_t kGuesses = 16;

struct Pool {
    float const* sums;  // [b, sums, c]
    double* means;      // [b, blocks, c]
    int32_t blocks, block;
};

// One thread per mean; grid rows are tensors, which together have threads enough.
__global__ void __launch_bounds__(kThreads) poolKernel(Pool q, Pool k, int32_t b, int32_t tokens, int32_t c) {
    followKernelAhead();
    Pool const pool = blockIdx.y == 0 ? q : k;
    uint32_t const index = blockIdx.x * kThreads + threadIdx.x;
    uint32_t const channel = index % c, place = index / c, batch = place / pool.blocks;
    if (batch >= static_cast<uint32_t>(b)) return;
    int32_t const sums = (tokens + kSumRows - 1) / kSumRows, block = static_cast<int32_t>(place % pool.blocks);
    int32_t const first = block * (pool.block / kSumRows), end = min(first + pool.block / kSumRows, sums);
    float const* const from = pool.sums + static_cast<int64_t>(batch) * sums * c + channel;
    double sum = 0.0;
#pragma unroll 4
    for (int32_t i = first; i < end; ++i) sum += static_cast<double>(from[static_cast<int64_t>(i) * c]);
    pool.means[index] = sum / min(pool.block, tokens - block * pool.block);
}

struct Arguments {
    double const* queries;  // means, [b, blocksQ, c]
    double const* keys;     // means, [b, blocksK, c]
    uint32_t* high;         // of the slab's scores, [tiles, kQueries, width]
    uint32_t* low;
    int32_t* lut;
    int32_t c, heads, blocksQ, blocksK, keep;
    int32_t tiles;  // of kQueries query blocks, in a head
    int32_t width;  // blocksK and what makes it even
    int32_t first;  // tile of the slab

    // Head, of all batch entries, and first query block of a tile of the slab.
    __device__ __forceinline__ int32_t head(int32_t tile) const { return (first + tile) / tiles; }
    __device__ __forceinline__ int32_t query(int32_t tile) const { return (first + tile) % tiles * kQueries; }
};

// Unsigned integers in the order of doubles; NaN lies beyond the infinity of its sign, so the order is total.
__device__ __forceinline__ uint64_t ordered(double x) {
    auto const bits = static_cast<uint64_t>(__double_as_longlong(x));
    return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

// A double whose order has this high word.
__device__ __forceinline__ double valueOf(uint32_t high) {
    return __hiloint2double(static_cast<int32_t>(high >> 31 ? high ^ 0x80000000 : ~high), 0);
}

// sum += a * b for 16 rows, 8 columns and 8 channels. Lane 4i + j has rows i and i + 8 of channels 2j and 2j + 1, these
// channels of column i, and sums of columns 2j and 2j + 1 in row i, then in row i + 8.
__device__ __forceinline__ void multiply(double (&sum)[4], double2 const (&a)[2], double2 b) {
#if __CUDA_ARCH__ >= 900
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
        : "d"(a[0].x), "d"(a[0].y), "d"(a[1].x), "d"(a[1].y), "d"(b.x), "d"(b.y));
#else
    auto const step = [&](double& x, double& y, double row, double column) {
        asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+d"(x), "+d"(y)
            : "d"(row), "d"(column));
    };
    step(sum[0], sum[1], a[0].x, b.x);
    step(sum[0], sum[1], a[1].x, b.y);
    step(sum[2], sum[3], a[0].y, b.x);
    step(sum[2], sum[3], a[1].y, b.y);
#endif
}

// Two channels of a head, 0 past its end. Wide accesses are of heads of whole steps, and never past the end.
template <bool wide>
__device__ __forceinline__ double2 channels(double const* row, int32_t channel, int32_t d) {
    if constexpr (wide) {
        return *reinterpret_cast<double2 const*>(row + channel);
    } else {
        return {channel < d ? row[channel] : 0.0, channel + 1 < d ? row[channel + 1] : 0.0};
    }
}

// One CTA per tile of the slab and `kKeys` key blocks. A warp multiplies all queries, from shared memory, by keys of
// its own: no other warp reads them, so they come straight to registers, for the next step while other warps multiply.
template <bool wide>
__global__ void __launch_bounds__(kThreads, wide ? 2 : 1) scoreKernel(Arguments a) {
    constexpr int32_t kRows = 16, kColumns = 8;
    static_assert(kWarps == 8 && kDepth == 2 * kWarp && kWarpKeys == 2 * kColumns);
    // Rows i and i + 8 side by side. The channel more puts even and odd rows of an access into different banks.
    __shared__ double2 queries[kQueries / 2][kDepth + 1];
    __shared__ double2 origin[kDepth / 2];  // of keys
    int32_t const thread = static_cast<int32_t>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    int32_t const row = lane / 4, pair = lane % 4 * 2;
    followKernelAhead();
    int32_t const tile = static_cast<int32_t>(blockIdx.x), head = a.head(tile), firstQuery = a.query(tile);
    int32_t const firstKey = static_cast<int32_t>(blockIdx.y) * kKeys + warp * kWarpKeys;
    int32_t const d = a.c / a.heads, channel = head % a.heads * d;
    int64_t const batch = head / a.heads;
    double const* const q = a.queries + batch * a.blocksQ * a.c + channel;

    double const* const firstOfAll = a.keys + batch * a.blocksK * a.c + channel;
    int32_t from[kWarpKeys / kColumns];
#pragma unroll
    for (int32_t n = 0; n < kWarpKeys / kColumns; ++n) {
        from[n] = min(firstKey + n * kColumns + row, a.blocksK - 1) * a.c;
    }
    double2 keys[kWarpKeys / kColumns];
    auto const fetch = [&](int32_t n, int32_t step) {
        if (step < d) keys[n] = channels<wide>(firstOfAll + from[n], step + pair, d);
    };
    fetch(0, 0);
    fetch(1, 0);
    double sum[kQueries / kRows][kWarpKeys / kColumns][4] = {};
    for (int32_t first = 0; first < d; first += kDepth) {
        __syncthreads();
#pragma unroll 2
        for (int32_t m = 0; m < kQueries / kRows; ++m) {
            int32_t const at = lane * 2;
            double2 mean[2] = {};
#pragma unroll
            for (int32_t i = 0; i < 2; ++i) {
                int32_t const query = min(firstQuery + m * kRows + i * 8 + warp, a.blocksQ - 1);
                if (first + at < d) mean[i] = channels<wide>(q + query * a.c, first + at, d);
            }
            queries[m * 8 + warp][at] = {mean[0].x, mean[1].x};
            queries[m * 8 + warp][at + 1] = {mean[0].y, mean[1].y};
        }
        if (thread < kDepth / 2) {
            bool const exists = first + thread * 2 < d;
            origin[thread] = exists ? channels<wide>(firstOfAll, first + thread * 2, d) : double2{};
        }
        __syncthreads();
        int32_t const end = firstKey < a.blocksK ? min(kDepth, d - first) : 0;
#pragma unroll 1
        for (int32_t at = 0; at < end; at += kStep) {
            double2 const zero = origin[(at + pair) / 2];
            double2 relative[kWarpKeys / kColumns];
#pragma unroll
            for (int32_t n = 0; n < kWarpKeys / kColumns; ++n) {
                relative[n] = {keys[n].x - zero.x, keys[n].y - zero.y};
                fetch(n, first + at + kStep);
            }
#pragma unroll
            for (int32_t m = 0; m < kQueries / kRows; ++m) {
                double2 const fragment[] = {queries[m * 8 + row][at + pair], queries[m * 8 + row][at + pair + 1]};
#pragma unroll
                for (int32_t n = 0; n < kWarpKeys / kColumns; ++n) multiply(sum[m][n], fragment, relative[n]);
            }
        }
    }
#pragma unroll
    for (int32_t n = 0; n < kWarpKeys / kColumns; ++n) {
        int32_t const key = firstKey + n * kColumns + pair;
        if (key >= a.blocksK) break;
#pragma unroll
        for (int32_t m = 0; m < kQueries / kRows; ++m) {
#pragma unroll
            for (int32_t i = 0; i < 2; ++i) {
                int32_t const at = (tile * kQueries + m * kRows + i * 8 + row) * a.width + key;
                uint64_t const x = ordered(sum[m][n][2 * i]), y = ordered(sum[m][n][2 * i + 1]);
                uint2 const high{static_cast<uint32_t>(x >> 32), static_cast<uint32_t>(y >> 32)};
                uint2 const low{static_cast<uint32_t>(x), static_cast<uint32_t>(y)};
                *reinterpret_cast<uint2*>(a.high + at) = high;
                *reinterpret_cast<uint2*>(a.low + at) = low;
            }
        }
    }
}

// The high words of a query block's scores, for a warp: every 32nd one for a lane.
struct Scores {
    uint32_t const* high;  // from the lane's first
    int32_t count, left;   // of the query block, and from the lane's first
    uint32_t held[kHeld];

    __device__ __forceinline__ Scores(uint32_t const* row, int32_t count, int32_t lane)
        : high(row + lane), count(count), left(count - lane) {
#pragma unroll
        for (int32_t i = 0; i < kHeld; ++i) held[i] = word(i * kWarp);
    }

    // 0 past the end.
    __device__ __forceinline__ uint32_t word(int32_t first) const { return first < left ? high[first] : 0; }

    // `visit(word, first)` for each 32 scores, ascending, from registers as far as they go if `kFrom` is kHeld, from
    // memory if it is 0.
    template <int32_t kFrom, class Visit>
    __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
        for (int32_t step = 0; step < kFrom; step += kHeldStep) {
            if (step * kWarp >= count) return;
#pragma unroll
            for (int32_t i = step; i < step + kHeldStep; ++i) visit(held[i], i * kWarp);
        }
#pragma unroll 1
        for (int32_t first = kFrom * kWarp; first < count; first += kWarp) visit(word(first), first);
    }

    template <int32_t kFrom, class Predicate>
    __device__ __forceinline__ uint32_t countIf(Predicate predicate) const {
        uint32_t found = 0;
        each<kFrom>([&](uint32_t word, int32_t first) { found += predicate(word, first); });
        return __reduce_add_sync(kAllLanes, found);
    }
};

// The largest word in [least, most] that at least `keep` scores reach, or a smaller one that exactly `keep` reach.
// `reached` counts those of the result, at first those of `least`, at least `keep`; fewer exceed `most`. A guess out of
// range is ignored.
template <class Guess, class Reach>
__device__ __forceinline__ uint32_t search(uint32_t least, uint32_t most, uint32_t keep, uint32_t& reached,
                                           Guess guess, Reach reach) {
    for (int32_t step = 0; reached != keep && least < most; ++step) {
        uint32_t middle = step < kGuesses ? guess(least, most) : least;
        if (middle <= least || middle > most) middle = least + (most - least) / 2 + 1;
        uint32_t const count = reach(middle);
        if (count >= keep) {
            least = middle;
            reached = count;
        } else {
            most = middle - 1;
        }
    }
    return least;
}

// One warp per query block of the slab writes the places of the `keep` largest scores, ascending; of equal ones
// the lower. 1 <= keep <= blocksK.
__global__ void __launch_bounds__(kThreads, 4) selectKernel(Arguments a) {
    int32_t const thread = static_cast<int32_t>(threadIdx.x), lane = thread % kWarp;
    int32_t const row = static_cast<int32_t>(blockIdx.x) * kWarps + thread / kWarp;
    followKernelAhead();
    int32_t const tile = row / kQueries, query = a.query(tile) + row % kQueries;
    if (query >= a.blocksQ) return;
    Scores const scores(a.high + row * a.width, a.blocksK, lane);
    auto const keep = static_cast<uint32_t>(a.keep);

    uint32_t least = UINT32_MAX, most = 0;
    scores.each<kHeld>([&](uint32_t word, int32_t first) {
        if (first < scores.left) least = min(least, word);
        most = max(most, word);
    });
    least = __reduce_min_sync(kAllLanes, least);
    most = __reduce_max_sync(kAllLanes, most);

    // Halving the range of values soon parts scores of like size; halving that of words surely ends.
    auto reached = static_cast<uint32_t>(a.blocksK);
    uint32_t const threshold = search(
        least, most, keep, reached,
        [](uint32_t x, uint32_t y) {
            return static_cast<uint32_t>(ordered(0.5 * valueOf(x) + 0.5 * valueOf(y)) >> 32);
        },
        [&](uint32_t next) { return scores.countIf<kHeld>([=](uint32_t word, int32_t) { return word >= next; }); });

    int32_t* lut = a.lut + (static_cast<int64_t>(a.head(tile)) * a.blocksQ + query) * a.keep;
    uint32_t const before = (1u << lane) - 1;
    auto const write = [&](bool taken, int32_t first) {
        uint32_t const all = __ballot_sync(kAllLanes, taken);
        if (taken) lut[__popc(all & before)] = first + lane;
        lut += __popc(all);
    };
    if (reached == keep) {
        scores.each<kHeld>(
            [&](uint32_t word, int32_t first) { write(first < scores.left && word >= threshold, first); });
        return;
    }

    // Only some of the scores with the threshold's high word are kept: low words say which, then places.
    uint32_t const* const low = a.low + row * a.width + lane;
    auto const level = [&](uint32_t word, int32_t first) { return word == threshold && first < scores.left; };
    uint32_t const beyond = scores.countIf<0>([=](uint32_t word, int32_t) { return word > threshold; });
    uint32_t levels = reached - beyond;
    uint32_t const lowest = search(
        0, UINT32_MAX, keep - beyond, levels, [](uint32_t x, uint32_t) { return x; },
        [&](uint32_t next) {
            return scores.countIf<0>(
                [&](uint32_t word, int32_t first) { return level(word, first) && low[first] >= next; });
        });
    uint32_t ties = keep - beyond - scores.countIf<0>([&](uint32_t word, int32_t first) {
        return level(word, first) && low[first] > lowest;
    });
    scores.each<0>([&](uint32_t word, int32_t first) {
        bool const equal = level(word, first) && low[first] == lowest;
        uint32_t const equals = __ballot_sync(kAllLanes, equal);
        bool const tie = equal && static_cast<uint32_t>(__popc(equals & before)) < ties;
        write(tie || word > threshold || (level(word, first) && low[first] > lowest), first);
        ties -= min(ties, static_cast<uint32_t>(__popc(equals)));
    });
}

// Sizes and the workspace.
struct Plan {
    int64_t b, l, c, blocksQ, blocksK;
    int64_t tiles, width, scores;  // tiles of all heads; scores of a slab
    size_t queries, keys, plane;   // bytes, each a multiple of 256

    Plan(TurboBlockMap::Attrs const& attrs, Tensor const& q)
        : b(q.dim[0]),
          l(attrs.tokens),
          c(q.dim[2]),
          blocksQ(ceilDiv(l, attrs.block_q)),
          blocksK(ceilDiv(l, attrs.block_k)),
          tiles(b * attrs.heads * ceilDiv(blocksQ, kQueries)),
          width(ceilDiv(blocksK, 2) * 2),
          scores(std::min<int64_t>(tiles * kQueries * width, kScoresMax)),
          queries(bytes<double>(b * blocksQ * c)),
          keys(bytes<double>(b * blocksK * c)),
          plane(bytes<uint32_t>(scores)) {}

    template <class T>
    static size_t bytes(int64_t count) {
        return static_cast<size_t>(ceilDiv(count * static_cast<int64_t>(sizeof(T)), 256)) * 256;
    }
};

// A slab of tiles at a time: their scores, then their places in `lut`.
template <bool wide>
Status map(Arguments a, Plan const& plan, Queue queue) {
    int64_t const slab = plan.scores / (kQueries * plan.width);
    auto const across = static_cast<uint32_t>(ceilDiv(plan.blocksK, kKeys));
    Status status;
    for (int64_t first = 0; first < plan.tiles && status.ok(); first += slab) {
        a.first = static_cast<int32_t>(first);
        auto const tiles = static_cast<uint32_t>(std::min(slab, plan.tiles - first));
        status = enqueue(scoreKernel<wide>, dim3(tiles, across), kThreads, 0, queue, a);
        if (status.ok()) status = enqueue(selectKernel, tiles * (kQueries / kWarps), kThreads, 0, queue, a);
    }
    return status;
}

}  // namespace

Status prepare(TurboBlockMap::Attrs const& attrs, Call const& call, size_t* bytes) {
    *bytes = 0;
    Tensor const& q = call.in[TurboBlockMap::kInQSums];
    if (attrs.tokens <= 0 || attrs.heads <= 0 || attrs.block_q <= 0 || attrs.block_k <= 0) {
        return {"`tokens`, `heads`, `block_q` and `block_k` must be positive"};
    }
    if (attrs.block_q % kSumRows != 0 || attrs.block_k % kSumRows != 0) {
        return {"`block_q` and `block_k` must be multiples of 32"};
    }
    if (q.dim[2] == 0 || q.dim[2] % attrs.heads != 0) return {"`heads` must divide axis `c` of `q_sums`"};
    Plan const plan(attrs, q);
    if (attrs.keep < 0 || attrs.keep > plan.blocksK) return {"`keep` must be 0 to the number of key blocks"};
    if (kQueries * plan.width > kScoresMax) return {"there must be at most 262144 key blocks"};
    int64_t const most = std::max(plan.blocksQ, plan.blocksK);
    if (plan.l > INT32_MAX / 2 || plan.b * plan.c * most > INT32_MAX) {
        return {"there must be fewer than 2^30 tokens and 2^31 pooled values"};
    }
    *bytes = plan.queries + plan.keys + 2 * plan.plane;
    return {};
}

Status launch(TurboBlockMap::Attrs const& attrs, Call const& call, void* workspace, cudaStream_t stream) {
    Tensor const& q = call.in[TurboBlockMap::kInQSums];
    Tensor const& k = call.in[TurboBlockMap::kInKSums];
    Tensor const& lut = call.out[TurboBlockMap::kOutLut];
    if (lut.count() == 0) return {};
    Plan const plan(attrs, q);
    auto* const queries = static_cast<double*>(workspace);
    auto* const keys = queries + plan.queries / sizeof(double);
    auto* const high = reinterpret_cast<uint32_t*>(keys + plan.keys / sizeof(double));
    auto const b = static_cast<int32_t>(plan.b), l = static_cast<int32_t>(plan.l), c = static_cast<int32_t>(plan.c);
    auto const blocksQ = static_cast<int32_t>(plan.blocksQ), blocksK = static_cast<int32_t>(plan.blocksK);
    Pool const poolQ{static_cast<float const*>(q.data), queries, blocksQ, attrs.block_q};
    Pool const poolK{static_cast<float const*>(k.data), keys, blocksK, attrs.block_k};
    Arguments const arguments{queries,
                              keys,
                              high,
                              high + plan.plane / sizeof(uint32_t),
                              static_cast<int32_t*>(lut.data),
                              c,
                              attrs.heads,
                              blocksQ,
                              blocksK,
                              attrs.keep,
                              static_cast<int32_t>(ceilDiv(blocksQ, kQueries)),
                              static_cast<int32_t>(plan.width),
                              0};
    dim3 const grid(static_cast<uint32_t>(ceilDiv(plan.b * c * std::max(blocksQ, blocksK), kThreads)), 2);
    Queue const queue = hopper::behind(stream);
    Status const status = enqueue(poolKernel, grid, kThreads, 0, queue, poolQ, poolK, b, l, c);
    if (!status.ok()) return status;
    return c / attrs.heads % kStep == 0 ? map<true>(arguments, plan, queue) : map<false>(arguments, plan, queue);
}

}  // namespace turbo
