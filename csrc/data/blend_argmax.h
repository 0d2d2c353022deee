/// The inner step of blending: the first place of the largest w * m - c.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megacore::data {

/// Doubles per block that the arrays below are padded to.
inline constexpr std::size_t kBlendBlock = 8;

/// State of a blend. Arrays hold `blocks` * kBlendBlock values and are 64-byte aligned; padding
/// has weight 0 and an infinite count, so that it never wins.
struct BlendState {
    const double* weights;  ///< w
    double* counts;         ///< c; infinite for a dataset that left
    const double* limits;   ///< a dataset whose count reaches its limit leaves
    std::size_t blocks;
};

/// Takes `size` places from number `begin` on: writes the chosen dataset and its count, and
/// increments the count. Counts must stay below 2^53.
using BlendSteps = void (*)(const BlendState& state,
                            std::int64_t begin,
                            std::int64_t size,
                            std::int16_t* dataset,
                            std::int64_t* sample);

/// The fastest version for this processor.
BlendSteps blend_steps();

void blend_steps_portable(const BlendState& state,
                          std::int64_t begin,
                          std::int64_t size,
                          std::int16_t* dataset,
                          std::int64_t* sample);
#if defined(__x86_64__)
void blend_steps_avx2(const BlendState& state,
                      std::int64_t begin,
                      std::int64_t size,
                      std::int16_t* dataset,
                      std::int64_t* sample);
void blend_steps_avx512(const BlendState& state,
                        std::int64_t begin,
                        std::int64_t size,
                        std::int16_t* dataset,
                        std::int64_t* sample);
#endif

}  // namespace megacore::data
