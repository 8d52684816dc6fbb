// The address that PTX instructions know shared memory by, and shared memory of the other CTAs of a cluster (sm_90 and
// newer).
#pragma once

#include <cstdint>

namespace turbo {

__device__ __forceinline__ uint32_t sharedAddress(void const* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A barrier of a cluster: every thread arrives, and waits before it arrives again.
__device__ __forceinline__ void arriveAtCluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void awaitCluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes a word to another CTA's shared memory, at the place of this CTA's `shared`.
__device__ __forceinline__ void storeToCta(uint32_t cta, uint32_t shared, uint32_t word) {
    asm volatile(
        "{\n"
        ".reg .b32 address;\n"
        "mapa.shared::cluster.u32 address, %0, %1;\n"
        "st.shared::cluster.u32 [address], %2;\n"
        "}" ::"r"(shared),
        "r"(cta), "r"(word)
        : "memory");
}

}  // namespace turbo
