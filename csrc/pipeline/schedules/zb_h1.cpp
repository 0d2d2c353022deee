// ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2.1).
//
// The order of 1F1B, with the backward split: the gradient of the input goes on at once, the
// gradient of the weights fills time that would be idle. Never more than P microbatches are held
// by a rank, the most that 1F1B holds on its first. Idle time (P - 1)(F + I - W): a third of
// 1F1B's when F = I = W.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/warm_up.h"
#include "pipeline/weight_grads.h"

namespace megacore::pipeline {

Schedule make_zb_h1(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    Schedule schedule{"zb-h1", plain_placement(ranks, count), {}};
    for (int rank = 0; rank < ranks; ++rank) {
        schedule.ranks.push_back(
            warm_up_then_alternate(rank, count, ranks - 1 - rank, Kind::kInputGrad));
    }
    return fill_weight_grads(std::move(schedule), options.costs, ranks);
}

}  // namespace megacore::pipeline
