// ZB-V (Qi et al. 2023, arXiv 2401.10241, section 6; as V-ZB a V-shape schedule of Qi et al. 2024,
// "Pipeline Parallelism with Controllable Memory", arXiv 2405.15362).
//
// Two chunks per rank, placed as a V: the model comes back to the first rank, which then starts
// the backward at once. A rank's two chunks hold activations for complementary times, so all ranks
// hold the same: 2 P chunks, as much as 1F1B holds on its first rank. No idle time between a
// rank's first and last step when F = I = W and there are at least 2 P - 1 microbatches.
#include <algorithm>

#include "pipeline/schedules/generators.h"
#include "pipeline/weight_grads.h"

namespace megacore::pipeline {
namespace {

/// F and I steps of one rank.
class Rank {
public:
    Rank(int rank, int num_ranks, int num_microbatches)
        : stages_{rank, 2 * num_ranks - 1 - rank}, count_(num_microbatches) {}

    void forward(int chunk) { add(chunk, Kind::kForward, forwards_[chunk]++); }
    void input_grad(int chunk) { add(chunk, Kind::kInputGrad, input_grads_[chunk]++); }
    int num_forwards(int chunk) const { return forwards_[chunk]; }

    std::vector<Action> steps;

private:
    // Orders are those of enough microbatches to fill the pipeline, without what is not there.
    void add(int chunk, Kind kind, int microbatch) {
        if (microbatch < count_) steps.push_back({stages_[chunk], kind, microbatch});
    }

    int stages_[2];
    int count_;
    int forwards_[2] = {0, 0};
    int input_grads_[2] = {0, 0};
};

}  // namespace

Schedule make_zb_v(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int full = std::max(options.num_microbatches, 2 * ranks - 1);
    Schedule schedule{"zb-v", v_placement(ranks, options.num_microbatches), {}};
    for (int r = 0; r < ranks; ++r) {
        Rank rank(r, ranks, options.num_microbatches);
        // Until the first microbatch comes back up the V; then both chunks in turn; then until
        // its gradient has gone down and up.
        for (int i = 0; i < 2 * (ranks - r) - 1; ++i) rank.forward(0);
        for (int i = 0; i < r; ++i) {
            rank.forward(1);
            rank.forward(0);
        }
        for (int i = 0; i < ranks - r; ++i) {
            rank.forward(1);
            rank.input_grad(1);
        }
        while (rank.num_forwards(1) < full) {
            if (rank.num_forwards(0) < full) rank.forward(0);
            rank.input_grad(0);
            rank.forward(1);
            rank.input_grad(1);
        }
        for (int i = 0; i < r; ++i) {
            rank.input_grad(0);
            rank.input_grad(1);
        }
        for (int i = 0; i < ranks - r; ++i) rank.input_grad(0);
        schedule.ranks.push_back(std::move(rank.steps));
    }
    return fill_weight_grads(std::move(schedule), options.costs, 2 * ranks);
}

}  // namespace megacore::pipeline
