// Which kernel computes a W8A8 linear, and in which tiles: a function of the problem and the GPU alone.
#pragma once

#include <cstdint>

namespace turbo::w8a8 {

enum class Kernel : int32_t {
    kWgmma,  // Hopper's, tiles of 256 x 128
    kTall,   // portable, tiles of 128 x 128
    kShort,  // portable, tiles of 64 x 128
};

// A linear whose outputs take 16 bits or 8; those in f32 are left to the portable kernels.
struct Problem {
    int32_t m, n, k;
    bool wide;         // whatever has rows has them at multiples of 16 bytes
    bool wholeBlocks;  // the epilogue needs 128 x 128 outputs at a time
};

// The tile of the portable kernels. One of 64 x 128 takes 48 KiB and 128 threads of some 240 registers, so that two CTAs
// share every multiprocessor from Ampere to Blackwell, and one multiplies while the other is at its epilogue: measured on
// an H200 with the 100 KiB of sm_120, it takes 8 to 10 % less time than one CTA of 128 x 128.
constexpr Kernel choosePortable(bool wholeBlocks) { return wholeBlocks ? Kernel::kTall : Kernel::kShort; }

// `hopper`: the GPU has compute capability 9.0, and its kernels were compiled and not switched off.
constexpr Kernel choose(Problem const& x, bool hopper) {
    bool const fits = x.wide && x.m >= 128 && x.n % 128 == 0 && x.k % 16 == 0;
    return hopper && fits ? Kernel::kWgmma : choosePortable(x.wholeBlocks);
}

// What is chosen for Wan's linears and at the edges.
struct Choice {
    Problem problem;
    Kernel onHopper, elsewhere;
};
constexpr Choice kChoices[] = {
    {{32760, 1536, 1536, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{32760, 8960, 1536, true, true}, Kernel::kWgmma, Kernel::kTall},
    {{32760, 1536, 8960, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{75600, 5120, 5120, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{75600, 13824, 5120, true, true}, Kernel::kWgmma, Kernel::kTall},
    {{75600, 5120, 13824, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{512, 1536, 1536, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{128, 128, 16, true, false}, Kernel::kWgmma, Kernel::kShort},
    {{127, 128, 16, true, false}, Kernel::kShort, Kernel::kShort},  // less than a warpgroup's rows
    {{128, 200, 16, true, false}, Kernel::kShort, Kernel::kShort},  // outputs end within a block
    {{128, 128, 200, false, true}, Kernel::kTall, Kernel::kTall},   // rows that the copy engine cannot read
};
constexpr bool areChosen() {
    for (Choice const& x : kChoices) {
        if (choose(x.problem, true) != x.onHopper || choose(x.problem, false) != x.elsewhere) return false;
    }
    return true;
}
static_assert(areChosen());

}  // namespace turbo::w8a8
