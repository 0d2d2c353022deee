// V-Min (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", arXiv 2405.15362,
// section 4).
//
// A third of the activations of 1F1B: (P + 4) / 3 microbatches, rounded down, on every rank, with
// about two thirds of its idle time. Offsets of 1, the smallest there are, add up to 4 P units of
// life for the two chunks of a microbatch, which is 2 P / 3 chunks at an interval of 6.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/v_block.h"

namespace megacore::pipeline {

Schedule make_v_min(const ScheduleOptions& options) {
    return repeat_v_block("v-min", {1, 1, 1, 1}, 2 * ((options.num_ranks + 4) / 3), options);
}

}  // namespace megacore::pipeline
