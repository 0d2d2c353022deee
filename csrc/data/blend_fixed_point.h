/// Blending by fixed-point errors that are certain to name the same dataset as the exact ones.
#pragma once

#include <cstdint>

#include "data/blend_argmax.h"

namespace megacore::data {

/// Datasets that the fixed-point errors of one step can hold in registers.
inline constexpr std::size_t kFixedPointDatasets = 128;

/// Whether this processor has the version below.
bool has_fixed_point_blend();

/// Takes up to `size` places like a BlendSteps and returns how many it took: fewer when errors are
/// too large for fixed point or too many are too close together; then exact steps must go on.
///
/// The error of every dataset is kept as a 32-bit number in units of 2^-24 and grows by its rounded
/// weight at each step; it is made anew from the exact error every few steps. When only one error
/// is within the accumulated rounding of the largest, that dataset is the exact choice. Otherwise
/// the exact errors of those within it decide.
///
/// Requires at most kFixedPointDatasets datasets, weights of at most 1, and begin >= 1.
std::int64_t blend_steps_fixed_point(const BlendState& state,
                                     std::int64_t begin,
                                     std::int64_t size,
                                     std::int16_t* dataset,
                                     std::int64_t* sample);

}  // namespace megacore::data
