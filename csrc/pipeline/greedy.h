/// Schedules made step by step: each rank, whenever it is free, takes the most urgent step it can.
#pragma once

#include <optional>
#include <vector>

#include "pipeline/simulate.h"

namespace megacore::pipeline {

/// What is urgent to a rank.
struct GreedyPolicy {
    enum class Prefer { kBackward, kForward, kAlternate };

    /// Between an F and an I that could both start.
    Prefer prefer = Prefer::kBackward;
    /// Among its own stages, whether the later ones (nearer to the loss) go first in F and in I.
    bool late_forward_first = true;
    bool late_backward_first = true;
    /// W runs in a gap before the next F or I when this share of it fits.
    double weight_fit = 1.0;
    /// Most bytes of activations on a rank.
    double memory_limit = 0.0;
    /// Until its first I a rank r holds warm_up_bytes[r] at most, or one microbatch. Empty:
    /// memory_limit.
    std::vector<double> warm_up_bytes;
};

/// A schedule of F, I and W in which no rank holds more than the policy's memory, or nothing where
/// the policy leads into a deadlock (which, with one chain and memory for one microbatch on each
/// rank, it does not).
///
/// @param costs  per stage, as for simulate
/// @param order  for each rank the order of its F and I (B counts as I, other steps are left out),
///               so that only the places of W are chosen; empty: all is chosen
std::optional<Schedule> greedy_schedule(const Placement& placement,
                                        const Costs& costs,
                                        const GreedyPolicy& policy,
                                        const std::vector<std::vector<Action>>& order = {});

}  // namespace megacore::pipeline
