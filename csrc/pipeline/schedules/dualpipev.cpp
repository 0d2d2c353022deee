// DualPipeV, the "cut-in-half" DualPipe (DeepSeek, github.com/deepseek-ai/DualPipe, 2025, after
// Sea AI Lab's observation that DualPipe need not hold the parameters twice).
//
// Half of DualPipe's ranks, each with two chunks of one model placed as a V: the way back up the
// V takes the part of the other direction. Idle time P - 1 when F = I = W = 1 for a chunk; a rank
// holds 2 P + 1 chunk activations.
#include <algorithm>

#include "pipeline/schedules/bidirectional.h"
#include "pipeline/schedules/generators.h"

namespace megacore::pipeline {

Schedule make_dualpipev(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    Schedule schedule{"dualpipev", v_placement(ranks, count), {}};
    // Orders are those of enough microbatches to fill the pipeline, without what is not there.
    const int full = std::max(2 * ranks, count);
    for (int rank = 0; rank < ranks; ++rank) {
        std::vector<Action> steps;
        for (const TwoStageStep& step : bidirectional_steps(ranks, rank, full)) {
            if (step.microbatch >= count) continue;
            const int stage = step.which == 0 ? rank : 2 * ranks - 1 - rank;
            steps.push_back({stage, step.kind, step.microbatch});
        }
        schedule.ranks.push_back(std::move(steps));
    }
    return schedule;
}

}  // namespace megacore::pipeline
