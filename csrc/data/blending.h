/// Which dataset, and which of its samples, each place of a blend takes.
///
/// At place i the dataset with the largest shortfall w_d * max(i, 1) - c_d is taken, where c_d
/// counts what it gave so far; equal shortfalls go to the first dataset. All in double precision,
/// product rounded before the subtraction. Bit-identical to the blends of Megatron-LM.
#pragma once

#include <cstdint>
#include <span>

namespace megacore::data {

/// The limit of the 16-bit dataset numbers in the files.
inline constexpr std::int64_t kMaxBlendDatasets = 32766;

/// Fills a blend of `dataset_index.size()` places with datasets of the given weights.
/// @param weights               [D], finite and not negative, D at most kMaxBlendDatasets
/// @param dataset_index         [size]: d
/// @param dataset_sample_index  [size]: c_d before this place
/// Throws Fault for other weights.
void build_blend(std::span<const double> weights,
                 std::span<std::int16_t> dataset_index,
                 std::span<std::int64_t> dataset_sample_index);

/// Fills a blend that takes every sample once: weights in proportion to `sizes`, and a dataset
/// leaves when it has given all of its samples. Outputs are [sum of sizes].
void build_exhaustive_blend(std::span<const std::int64_t> sizes,
                            std::span<std::int16_t> dataset_index,
                            std::span<std::int64_t> dataset_sample_index);

}  // namespace megacore::data
