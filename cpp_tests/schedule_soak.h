/// Random plans: make, connect, validate, simulate.
#pragma once

#include <cstdint>
#include <string>

namespace megacore::testing {

struct SoakReport {
    std::int64_t plans = 0;
    std::int64_t steps = 0;  // compute and transfers
    /// What is wrong with the first plan that failed, and how to make it again; empty: none failed.
    std::string failure;
};

/// Makes plans of random schedules (all that make_schedule knows, and random orders on random
/// placements), ranks, microbatches, chunks, costs and prefetch distances until one fails.
///
/// Each plan has to be valid with and without its transfers, also when the way between two ranks
/// holds one tensor; its simulation must end with every rank having done its work, not before the
/// busiest one could, and hold the activations that validation counts.
SoakReport soak_schedules(std::int64_t plans, std::uint64_t seed);

}  // namespace megacore::testing
