// Rows of queries, keys, values and outputs of the attention kernels for sm_90a, whose warpgroups have 64 queries each.
#pragma once

#include <algorithm>

#include "attn.cuh"
#include "hopper.cuh"
#include "shared.cuh"

namespace turbo::attn::wgmma {

constexpr int kWarps = hopper::kWarpgroup / 32;
constexpr int kQueries = kWarps * kWarpQueries;  // of a warpgroup
constexpr int kQueryChunks = kQueries * kRowChunks;
// A row of a head is as wide as two boxes of the copy engine.
constexpr int kBoxChannels = hopper::kRow / 2;
constexpr int kBoxes = kHeadDim / kBoxChannels;

// Whether the kernels take tensors of this shape: the copy engine's strides are below 2^40 bytes, and blocks of queries
// are counted in 32 bits.
inline bool takes(hopper::Device const& device, Shape const& shape) {
    int64_t const rows = std::max(shape.l, shape.s);
    int64_t const blocks = int64_t{shape.batch} * shape.heads * ceilDiv(shape.l, kQueries);
    return device.isHopper && shape.vector && shape.d == kHeadDim && 2 * shape.width() * rows < int64_t{1} << 40 &&
           blocks <= int64_t{1} << 30;
}

// How the copy engine reads tensors of `rows` rows a batch: boxes of `boxRows` rows of kBoxChannels channels.
inline cudaError_t mapRows(
    CUtensorMap& map, void const* tensor, Shape const& shape, int32_t rows, uint32_t boxRows) {
    uint64_t const row = 2 * shape.width(), count = rows;
    return hopper::makeMap<3>(map, tensor, {row, count, static_cast<uint64_t>(shape.batch)}, {row, row * count},
                              {hopper::kRow, boxRows, 1});
}

#if TURBO_HOPPER

// A warp's sixteen queries from rows of `rowChunk` in shared memory.
__device__ inline void loadQueries(Queries& q, uint4 const* shared) {
    int const lane = threadIdx.x % 32, row = threadIdx.x / 32 * kWarpQueries + lane % 16;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
        loadMatrices(q[step], shared + rowChunk(row, 2 * step + lane / 16));
    }
}

// Outputs of a warp's sixteen queries, those of its warpgroup from `firstQuery` on, by way of shared memory, sixteen
// bytes at a time; at(row, chunk) is a place for a chunk of a row of the warpgroup's.
template <class T, class At>
__device__ inline void storeRows(Softmax const& softmax, Rows<T> const& rows, int32_t firstQuery, At at) {
    int const lane = threadIdx.x % 32, firstRow = threadIdx.x % hopper::kWarpgroup / 32 * kWarpQueries;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; n += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float const(&from)[4] = softmax.out[n + i / 2];
            words[i] = pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
        hopper::storeMatrices(sharedAddress(at(firstRow + lane % 16, n + lane / 16)), words);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kWarpQueries / 2; ++i) {
        int const row = firstRow + 2 * i + lane / 16, chunk = lane % 16;
        int32_t const query = firstQuery + row;
        if (query >= rows.count || chunk * 8 >= rows.d) continue;
        *reinterpret_cast<uint4*>(rows.at(query, chunk * 8)) = *at(row, chunk);
    }
}

// The same of a thread block that is one warpgroup, with room for its rows at `shared`, and of rows of any alignment.
template <class T>
__device__ inline void storeRows(Softmax const& softmax, Rows<T> const& rows, uint4* shared) {
    if (!rows.vector) return softmax.store(rows);
    auto const at = [&](int row, int chunk) { return shared + rowChunk(row, chunk); };
    storeRows(softmax, rows, blockIdx.x * kQueries, at);
}

#endif  // TURBO_HOPPER

}  // namespace turbo::attn::wgmma
