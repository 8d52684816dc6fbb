// Warp instructions of the INT8 matrix product, sm_80 and newer: cp.async, ldmatrix and mma.sync m16n8k32
// (PTX ISA, "Warp-level matrix instructions" and "Asynchronous copy operations").
//
// Lane l holds, with g = l / 4 and t = l % 4,
//   of A [16, 32]: rows g and g + 8, bytes 4t..4t+3, then the same rows 16 bytes on;
//   of B [32, 8]:  column g, bytes 4t..4t+3, then 16 bytes on;
//   of C [16, 8]:  row g, columns 2t and 2t + 1, then row g + 8.
// ldmatrix gives lane l bytes 4t..4t+3 of row g of each of four 8 x 16 byte matrices whose rows' addresses
// lanes 0-7, 8-15, 16-23 and 24-31 hold: INT8 rows along K need no transposition for either operand.
#pragma once

#include <cstdint>

#include "shared.cuh"

namespace turbo::w8a8 {

// Writes 16 bytes to shared memory, at an address aligned to 16.
__device__ __forceinline__ void storeShared16(uint32_t shared, uint32_t const (&from)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(from[0]), "r"(from[1]),
                 "r"(from[2]), "r"(from[3])
                 : "memory");
}

// Copies 16 bytes to shared memory, past L1; both addresses are aligned to 16. Zeros where `valid` is false.
__device__ __forceinline__ void copyAsync16(uint32_t shared, void const* global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until this thread has at most `kPending` groups under way.
template <int32_t kPending>
__device__ __forceinline__ void waitCopies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 16 byte matrices of shared memory.
__device__ __forceinline__ void loadMatrices(uint32_t (&to)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
}

// c += a b.
__device__ __forceinline__ void mmaS8(int32_t (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace turbo::w8a8
