// Which kernel computes a W8A8 linear, and in which tiles: a function of the problem and the GPU alone.
#pragma once

#include <cstdint>

namespace turbo::w8a8 {

enum class Kernel : int32_t {
    kWgmma,  // Hopper's, tiles of 256 x 128
    kTall,   // portable, tiles of 128 x 128
    kShort,  // portable, tiles of 64 x 128
    kPair,   // the same, two of a cluster
};

// A linear whose outputs take 16 bits or 8; those in f32 are left to the portable kernels.
struct Problem {
    int32_t m, n, k;
    bool wide;         // whatever has rows has them at multiples of 16 bytes
    bool wholeBlocks;  // the epilogue needs 128 x 128 outputs at a time
};

// What a GPU can do, and the code that was compiled for it.
struct Gpu {
    bool hopper;    // compute capability 9.0, and its kernels were not switched off
    bool clusters;  // CTAs that read each other's shared memory: 9.0 and newer
};

// A tile of 64 x 128 takes 48 KiB and 128 threads of some 240 registers, so that two CTAs share every multiprocessor from
// Ampere to Blackwell, and one multiplies while the other is at its epilogue: measured on an H200 with the 100 KiB of
// sm_120, it takes 8 to 10 % less time than one CTA of 128 x 128. Where outputs are wanted 128 x 128 at a time, two such
// CTAs tell each other what they have to know, if they can.
constexpr Kernel choose(Problem const& x, Gpu gpu) {
    bool const fits = x.wide && x.m >= 128 && x.n % 128 == 0 && x.k % 16 == 0;
    if (gpu.hopper && fits) return Kernel::kWgmma;
    if (!x.wholeBlocks) return Kernel::kShort;
    return gpu.clusters ? Kernel::kPair : Kernel::kTall;
}

// What is chosen for Wan's linears and at the edges.
struct Choice {
    Problem problem;
    Kernel hopper, blackwell, ampere;
};
constexpr Choice kChoices[] = {
    {{32760, 1536, 1536, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    {{32760, 8960, 1536, true, true}, Kernel::kWgmma, Kernel::kPair, Kernel::kTall},
    {{32760, 1536, 8960, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    {{75600, 5120, 5120, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    {{75600, 13824, 5120, true, true}, Kernel::kWgmma, Kernel::kPair, Kernel::kTall},
    {{75600, 5120, 13824, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    {{512, 1536, 1536, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    {{128, 128, 16, true, false}, Kernel::kWgmma, Kernel::kShort, Kernel::kShort},
    // Less than a warpgroup's rows, outputs that end within a block, rows that the copy engine cannot read.
    {{127, 128, 16, true, false}, Kernel::kShort, Kernel::kShort, Kernel::kShort},
    {{128, 200, 16, true, false}, Kernel::kShort, Kernel::kShort, Kernel::kShort},
    {{128, 128, 200, false, true}, Kernel::kPair, Kernel::kPair, Kernel::kTall},
};
constexpr bool areChosen() {
    for (Choice const& x : kChoices) {
        if (choose(x.problem, {true, true}) != x.hopper || choose(x.problem, {false, true}) != x.blackwell ||
            choose(x.problem, {false, false}) != x.ampere) {
            return false;
        }
    }
    return true;
}
static_assert(areChosen());

}  // namespace turbo::w8a8
