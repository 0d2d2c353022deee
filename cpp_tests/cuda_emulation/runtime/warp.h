/// How the lanes of a warp meet.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/machine.h"

namespace cuda_emulation {

/// Which operation the lanes perform; all lanes of a meeting must agree.
enum class WarpOperation : int {
    kShuffle = 0,
    kBallot = 8,
    kMatch = 9,
    kReduce = 16,
    kBarrier = 32,
    kLoadMatrix = 33,
    kMultiply = 34,
};

/// Waits until all lanes of `mask` have brought a value, and returns all of them, by lane. They
/// stay until the caller's next meeting under the same mask.
const std::array<std::uint64_t, kLanes>& meet(
    Machine& m, unsigned mask, int operation, std::uint64_t value, Site site);

}  // namespace cuda_emulation
