/// Whether a schedule can run.
#pragma once

#include <vector>

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// Activation memory of a schedule, in any unit. Lists hold one value for all or one per rank
/// (stage).
struct Limits {
    /// The most that a rank may hold; empty: as much as it needs.
    std::vector<double> max_live{};
    /// What one microbatch leaves in a stage from its F to its B or W.
    std::vector<double> activation_size{1.0};
    /// The part of it, 0 to 1, that I frees already.
    double freed_by_input_grad = 0.0;
};

/// Checks a schedule and returns the most activation memory that each rank holds at once.
///
/// Every stage forwards each of its microbatches once and then backwards it once, by B or by I and
/// W. The gradients of a stage are reduced after the last of them is there; its parameters are
/// gathered before its first F. Where the schedule has SEND and RECV steps it has all of them: a
/// send after what it sends, a receive before what needs it, the receives from a rank in the order
/// of that rank's sends. The ranks can then run to their ends, even if a send waits until the one
/// before it, between the same two ranks, was received. No rank holds more than the limit.
///
/// Linear in the number of steps. Throws megacore::Error that says which step is wrong and why,
/// with a grid (a row per rank, a column per step) in which it is marked.
std::vector<double> validate(const Schedule& schedule, const Limits& limits = {});

}  // namespace megacore::pipeline
