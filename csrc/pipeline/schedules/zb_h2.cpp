// ZB-H2 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2.2).
//
// As ZB-H1 with twice the forwards in the warm-up: the first gradient comes back to a rank that is
// still busy with forwards. Idle time (P - 1)(F + I - 2 W) between a rank's first and last step,
// none when F = I = W and there are at least 2 P - 1 microbatches, for the activations of 2 P - 1
// microbatches. Ranks start one after the other and end one after the other: a step that begins
// with a wait of all for all pays (P - 1) F for that.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/warm_up.h"
#include "pipeline/weight_grads.h"

namespace megacore::pipeline {

Schedule make_zb_h2(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    Schedule schedule{"zb-h2", plain_placement(ranks, count), {}};
    for (int rank = 0; rank < ranks; ++rank) {
        schedule.ranks.push_back(
            warm_up_then_alternate(rank, count, 2 * (ranks - 1 - rank), Kind::kInputGrad));
    }
    return fill_weight_grads(std::move(schedule), options.costs, 2 * ranks - 1);
}

}  // namespace megacore::pipeline
