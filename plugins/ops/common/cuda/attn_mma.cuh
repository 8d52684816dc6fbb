// Tensor core and copy instructions of the attention kernels, sm_80 and newer (PTX ISA, "Warp-level matrix
// instructions").
//
// A warp multiplies fragments: A of 16 rows, B of 8 columns, C of 16 x 8. With g = lane / 4 and t = lane % 4
// a lane holds of C rows g (c[0], c[1]) and g + 8 (c[2], c[3]) at columns 2t and 2t + 1; of A and B words of
// two or four elements that lie side by side along the depth. The order of the depth is free if A and B agree
// on it, so eight bit operands are stored in the order in which two tiles of C hand them on: see
// `slotElement`.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mma_e4m3.cuh"

namespace turbo::attn {

// Where chunk `chunk` (16 bytes) of row `row` lies in a tile of rows of kChunks chunks, such that eight rows
// of one chunk, which is what ldmatrix reads at a time, touch every bank of shared memory once.
template <int kChunks>
__device__ inline int swizzle(int row, int chunk) {
    static_assert(kChunks == 4 || kChunks % 8 == 0);
    return row * kChunks + (chunk ^ (kChunks == 4 ? row >> 1 & 3 : row & 7));
}

// Copies 16 bytes to shared memory in the background; zeros where not `valid`.
__device__ inline void copyAsync(uint4* shared, void const* global, bool valid = true) {
    uint32_t const address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// The same for four bytes.
__device__ inline void copyAsync(float* shared, float const* global, bool valid) {
    uint32_t const address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
}

// Waits for this thread's copies.
__device__ inline void copyWait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8 x 8 matrices of 16 bit elements; lane i gives row i % 8 of matrix i / 8.
__device__ inline void loadMatrices(uint32_t (&r)[4], uint4 const* row) {
    uint32_t const address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void loadMatricesTransposed(uint32_t (&r)[4], uint4 const* row) {
    uint32_t const address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// c += a b, depth 16.
template <class T>
__device__ void mma(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma<__half>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    mmaHalf(c, a, b0, b1);
}

// c += a b of INT8, depth 32.
__device__ inline void mmaInt8(int32_t (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as T, the first in the low half.
template <class T>
__device__ uint32_t pack(float low, float high);

template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 const x = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&x);
}

template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
    __half2 const x = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&x);
}

template <class T>
__device__ float2 unpack(uint32_t x);

template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t x) {
    return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}

template <>
__device__ inline float2 unpack<__half>(uint32_t x) {
    return __half22float2(*reinterpret_cast<__half2 const*>(&x));
}

__device__ inline float exp2Approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace turbo::attn
