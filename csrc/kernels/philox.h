/// Counter-based random numbers, the same on CPU and CUDA: Philox 4x32 with 10 rounds.
/// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace megacore {

struct Philox {
    std::uint32_t words[4];

    /// Four numbers for `counter` of the stream `seed`.
    static MEGACORE_HOST_DEVICE Philox at(std::uint64_t seed, std::uint64_t counter) {
        std::uint32_t a = static_cast<std::uint32_t>(counter);
        std::uint32_t b = static_cast<std::uint32_t>(counter >> 32);
        std::uint32_t c = 0;
        std::uint32_t d = 0;
        std::uint32_t key_low = static_cast<std::uint32_t>(seed);
        std::uint32_t key_high = static_cast<std::uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const std::uint64_t first = std::uint64_t{0xD2511F53u} * a;
            const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * c;
            a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key_low;
            b = static_cast<std::uint32_t>(second);
            c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key_high;
            d = static_cast<std::uint32_t>(first);
            key_low += 0x9E3779B9u;
            key_high += 0xBB67AE85u;
        }
        return {{a, b, c, d}};
    }
};

}  // namespace megacore
