// V-Half (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", arXiv 2405.15362,
// section 4).
//
// Half of the activations of 1F1B: (P + 2) / 2 microbatches, rounded down, on every rank, with
// about half of its idle time. Offsets 2, 1, 2, 1 add up to 6 P units of life for the two chunks
// of a microbatch, which is P chunks at an interval of 6; they never collide.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/v_block.h"

namespace megacore::pipeline {

Schedule make_v_half(const ScheduleOptions& options) {
    return repeat_v_block("v-half", {2, 1, 2, 1}, 2 * ((options.num_ranks + 2) / 2), options);
}

}  // namespace megacore::pipeline
