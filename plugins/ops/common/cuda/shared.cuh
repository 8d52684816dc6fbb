// The address that PTX instructions know shared memory by.
#pragma once

#include <cstdint>

namespace turbo {

__device__ __forceinline__ uint32_t sharedAddress(void const* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace turbo
