/// A schedule for given costs that keeps to a given memory.
#pragma once

#include <cstdint>
#include <string>

#include "pipeline/simulate.h"

namespace megacore::pipeline {

struct SearchOptions {
    int num_ranks = 1;
    int num_microbatches = 1;
    /// Costs of a rank's share of the layers (share_costs); lists hold one value.
    Costs share;
    /// Most activation bytes on a rank, in units of share.activation_bytes: with activation_bytes
    /// 1, the number of microbatches whose activations of one share fit.
    double memory_limit = 0.0;
    /// Steps that may be simulated to improve the best candidate.
    std::int64_t effort = 20'000'000;
};

struct SearchResult {
    /// F, B, I and W.
    Schedule schedule;
    /// Costs of its stages.
    Costs costs;
    Simulation simulation;
    /// Where it came from, such as "zb-v" or "greedy on v_placement, improved".
    std::string origin;
};

/// The best schedule found, by makespan, then by span, then by memory.
///
/// Candidates are every schedule that megacore makes (with the same model on each rank: DualPipe,
/// which holds it twice, is left out), each of them with W moved into its gaps, and greedy
/// schedules of several policies on the plain, the interleaved and the V placement. The best one is
/// improved step by step. So it is never worse than any of them that fits into the memory. The same
/// options give the same schedule.
///
/// Throws megacore::Error that says how much memory is needed, when nothing fits.
SearchResult search(const SearchOptions& options);

}  // namespace megacore::pipeline
