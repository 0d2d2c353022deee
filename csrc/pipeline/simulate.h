/// How long a schedule takes, where its ranks idle, and how many activations they hold.
#pragma once

#include <vector>

#include "pipeline/costs.h"
#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// One step and when it ran. For sends and receives: when the tensor was on its way.
struct Event {
    Action action;
    double start_us = 0.0;
    double end_us = 0.0;
};

/// Rank -> its events, in the order of its schedule.
using Timeline = std::vector<std::vector<Event>>;

/// What one rank did.
struct RankUse {
    /// Time in compute steps.
    double busy_us = 0.0;
    /// Start of the first and end of the last compute step.
    double first_us = 0.0;
    double last_us = 0.0;
    /// Most (stage, microbatch) pairs at once between the start of F and the end of B or W.
    int peak_activations = 0;
    /// Most activation bytes at once: F allocates, B frees; I frees what W does not need, W the
    /// rest.
    double peak_bytes = 0.0;
};

struct Simulation {
    /// From the start of the first event to the end of the last: a step whose ranks all wait for
    /// each other at its end, as clipping by the global gradient norm needs.
    double makespan_us = 0.0;
    /// The longest time from first to last compute step of a rank. Steps that follow each other
    /// without such a wait take this long (the measure of the zero-bubble papers).
    double span_us = 0.0;
    /// Share of the ranks' time in the makespan that is not compute.
    double bubble_fraction = 0.0;
    std::vector<RankUse> ranks;
    Timeline timeline;
};

/// Runs a schedule at the given costs.
///
/// Each rank takes its steps in order; F waits for its input, B and I for the gradient of their
/// output, F also for the parameters whose gathering was started. In a schedule without SEND and
/// RECV steps each tensor leaves when it was computed. With them it leaves when both sides have
/// started the transfer, in the order in which the sides started theirs; compute never waits for a
/// send. Pairs (Costs::pair_us) are for schedules without them.
///
/// Linear in the number of steps. Throws megacore::Error, with a picture of the schedule, when no
/// rank can go on, and for steps and costs that do not fit the placement.
Simulation simulate(const Schedule& schedule, const Costs& costs);

}  // namespace megacore::pipeline
