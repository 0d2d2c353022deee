/// Where the weight gradients of zero-bubble schedules go.
#pragma once

#include "pipeline/schedule.h"
#include "pipeline/simulate.h"

namespace megacore::pipeline {

/// Adds the W steps to a schedule of F and I steps.
///
/// The steps are run at the given costs. A rank that cannot go on, because what it needs is still
/// on its way, runs the oldest W instead; so does a rank that holds max_live activations before it
/// takes one more, each from its F to its W. What is left runs at the end. Where costs differ, a
/// rank may rather wait a little for its next step than delay it by a W; whether it does is chosen
/// by the time that the whole schedule takes.
///
/// max_live counts (stage, microbatch) pairs; a rank whose F and I steps need more gets what they
/// need. The steps must be able to run in their order.
Schedule fill_weight_grads(Schedule schedule, const Costs& costs, int max_live);

}  // namespace megacore::pipeline
