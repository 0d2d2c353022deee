// 1F1B (PipeDream-Flush: Narayanan et al. 2021, arXiv 2006.09503, section 3.2; Megatron-LM:
// arXiv 2104.04473, section 2.2.1).
//
// A rank runs one forward for each of the ranks behind it and then alternates, so a microbatch is
// backwarded as early as its gradient can be there. Idle time as GPipe, (P - 1)(F + B), but rank r
// holds the activations of P - r microbatches at most, however many there are.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/warm_up.h"

namespace megacore::pipeline {

Schedule make_one_f_one_b(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    Schedule schedule{"1f1b", plain_placement(ranks, count), {}};
    for (int rank = 0; rank < ranks; ++rank) {
        schedule.ranks.push_back(
            warm_up_then_alternate(rank, count, ranks - 1 - rank, Kind::kBackward));
    }
    return schedule;
}

}  // namespace megacore::pipeline
