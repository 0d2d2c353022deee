// GPipe: all forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965, figure 2c).
//
// Idle (P - 1)(F + B) of each rank's time; every microbatch's activations are held at once.
// Backwards run in the order of the forwards, so that gradients leave the last stage at once.
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/warm_up.h"

namespace megacore::pipeline {

Schedule make_gpipe(const ScheduleOptions& options) {
    const int count = options.num_microbatches;
    Schedule schedule{"gpipe", plain_placement(options.num_ranks, count), {}};
    for (int rank = 0; rank < options.num_ranks; ++rank) {
        schedule.ranks.push_back(warm_up_then_alternate(rank, count, count, Kind::kBackward));
    }
    return schedule;
}

}  // namespace megacore::pipeline
