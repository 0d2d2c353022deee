/// Better orders for a schedule, found by moving single steps.
#pragma once

#include <cstdint>

#include "pipeline/simulate.h"

namespace megacore::pipeline {

/// What a search compares, in this order: makespan, span, most bytes on a rank.
struct Quality {
    double makespan_us = 0.0;
    double span_us = 0.0;
    double peak_bytes = 0.0;

    explicit Quality(const Simulation& result);
    /// Whether it is better by more than rounding.
    bool better_than(const Quality& other) const;
};

/// Moves steps of the critical path before or behind their neighbours on the same rank, as long as
/// that improves the schedule.
///
/// The critical path is the chain of steps, each starting when the one before it ended, that ends
/// last: no other step is worth moving alone (Balas 1969, job-shop scheduling).
///
/// @param schedule      F, B, I and W only
/// @param memory_limit  most bytes on a rank
/// @param effort        most steps that are simulated for it
/// Returns a schedule that is never worse.
Schedule improve(Schedule schedule, const Costs& costs, double memory_limit, std::int64_t effort);

}  // namespace megacore::pipeline
