/// What the steps of a schedule cost.
#pragma once

#include <vector>

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// What the steps of a schedule cost. Lists hold one value per stage; one value alone stands for
/// every stage. Times are microseconds.
struct Costs {
    std::vector<double> forward_us{1.0};
    std::vector<double> input_grad_us{1.0};
    std::vector<double> weight_grad_us{1.0};
    /// Full backward; empty: the sum of its two halves.
    std::vector<double> backward_us{};
    /// F that is directly followed by B of another stage on its rank, both as one step whose
    /// results leave together: the overlapped pair F&B of DualPipe. Empty: one after the other.
    std::vector<double> pair_us{};
    /// Time for which one tensor occupies the way from one rank to another: tensors of one
    /// direction (activations or gradients) on it follow each other.
    double transfer_us = 0.0;
    /// Further time until the tensor is there, which does not hold up the next one.
    double latency_us = 0.0;
    /// Time of the rank itself for each send, receive or bucket that it starts.
    double post_us = 0.0;
    /// Reduction of one bucket of gradients and gathering of one bucket of parameters, which a
    /// rank does one after the other beside its compute.
    std::vector<double> reduce_grad_us{0.0};
    std::vector<double> gather_param_us{0.0};
    /// What one microbatch leaves in a stage from F on.
    std::vector<double> activation_bytes{1.0};
    /// The part of it that stays from I to W; empty: all of it.
    std::vector<double> kept_bytes{};
};

/// Throws megacore::Error, naming the field, for costs that are not finite and at least 0 or not
/// one or one per stage.
void check_costs(const Costs& costs, int num_stages);

/// The same with one value per stage in every list but pair_us, which may stay empty.
/// Throws megacore::Error that names the list for a wrong number of values, and for values that are
/// no finite numbers of at least 0.
Costs costs_per_stage(const Costs& costs, int num_stages);

/// Costs of the stages of a placement, given those of a rank's share: of 1 / num_ranks of the
/// layers, for one microbatch. Where a chain has v stages per rank each of them has a v-th of the
/// share's time and bytes; a transfer costs the same between any two stages. So schedules of one
/// model on different placements can be compared.
///
/// @param share  lists hold one value
/// Throws megacore::Error when a list holds more.
Costs share_costs(const Placement& placement, const Costs& share);

}  // namespace megacore::pipeline
