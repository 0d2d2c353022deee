// DualPipe (DeepSeek-V3 technical report, 2024, arXiv 2412.19437, section 3.2.1 and figure 5; the
// eight phases are those of the published implementation, github.com/deepseek-ai/DualPipe).
//
// Microbatches enter at both ends of the pipeline: each rank holds two stages, one of each of two
// copies of the model that run in opposite directions. In the main phase the forward of one
// direction pairs with the backward of the other, whose communication it hides. The report gives
// the idle time as (P / 2 - 1)(F&B + B - 3 W) with the pair F&B as one step; run one after the
// other, as in these lists, F's output leaves early, and P / 2 - 1 remains when F = I = W = 1.
// A rank holds the activations of P + 1 microbatches, and the parameters twice.
//
// The backward is split into I and W where a gradient is waited for: while the pipeline turns from
// forward to backward, and at the end.
#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "pipeline/refuse.h"
#include "pipeline/schedules/bidirectional.h"
#include "pipeline/schedules/generators.h"

namespace megacore::pipeline {
namespace {

class Steps {
public:
    void forward(int which) { add(which, Kind::kForward, forwards_[at(which)]++); }
    void backward(int which) { add(which, Kind::kBackward, backwards_[at(which)]++); }
    void input_grad(int which) {
        waiting_.push_back({which, Kind::kWeightGrad, backwards_[at(which)]});
        add(which, Kind::kInputGrad, backwards_[at(which)]++);
    }
    void weight_grad() { steps.push_back(waiting_[done_++]); }

    std::vector<TwoStageStep> steps;

private:
    static std::size_t at(int which) { return static_cast<std::size_t>(which); }
    void add(int which, Kind kind, int microbatch) { steps.push_back({which, kind, microbatch}); }

    std::array<int, 2> forwards_{};
    std::array<int, 2> backwards_{};
    std::vector<TwoStageStep> waiting_;
    std::size_t done_ = 0;
};

}  // namespace

std::vector<TwoStageStep> bidirectional_steps(int half, int depth, int num_microbatches) {
    const int ahead = half - 1 - depth;  // ranks between this one and the middle
    Steps out;
    for (int i = 0; i < 2 * ahead; ++i) out.forward(0);
    for (int i = 0; i <= depth; ++i) {
        out.forward(0);
        out.forward(1);
    }
    for (int i = 0; i < ahead; ++i) {
        out.input_grad(1);
        out.weight_grad();
        out.forward(1);
    }
    for (int i = 0; i < num_microbatches - 2 * half + depth + 1; ++i) {
        out.forward(0);
        out.backward(1);
        out.forward(1);
        out.backward(0);
    }
    for (int i = 0; i < ahead; ++i) {
        out.backward(1);
        out.forward(1);
        out.backward(0);
    }
    // From the middle of this phase on, gradients are waited for.
    for (int i = 0; i < 2 * (depth + 1); ++i) {
        if (i <= depth) {
            out.backward(1 - i % 2);
        } else {
            out.input_grad(1 - i % 2);
        }
    }
    for (int i = 0; i < ahead; ++i) {
        out.weight_grad();
        out.input_grad(0);
    }
    for (int i = 0; i <= depth; ++i) out.weight_grad();
    return std::move(out.steps);
}

Schedule make_dualpipe(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    if (ranks % 2 != 0) {
        refuse("schedule dualpipe: expected an even number of ranks, found ",
               ranks,
               ": the two directions meet between the two halves of the pipeline; dualpipev takes "
               "any number");
    }
    if (count < 2) {
        refuse("schedule dualpipe: expected at least two microbatches, found ",
               count,
               ": each of the two directions needs one");
    }
    Schedule schedule{"dualpipe", mirrored_placement(ranks, count), {}};
    const auto& ranges = schedule.placement.microbatches;
    // Orders are those of enough microbatches to fill the pipeline, without what is not there.
    const int full = std::max(ranks, ranges[0].second);
    for (int rank = 0; rank < ranks; ++rank) {
        const int second_half = rank < ranks / 2 ? 0 : 1;
        const int depth = second_half ? ranks - 1 - rank : rank;
        std::vector<Action> steps;
        for (const TwoStageStep& step : bidirectional_steps(ranks / 2, depth, full)) {
            const int chain = step.which ^ second_half;
            const auto [first, size] = ranges[static_cast<std::size_t>(chain)];
            const int stage = chain == 0 ? rank : 2 * ranks - 1 - rank;
            if (step.microbatch >= size) continue;
            steps.push_back({stage, step.kind, first + step.microbatch});
        }
        schedule.ranks.push_back(std::move(steps));
    }
    return schedule;
}

}  // namespace megacore::pipeline
