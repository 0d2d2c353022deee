// Building blocks (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", arXiv
// 2405.15362, sections 3 and 4).
//
// A schedule is one microbatch's passes, repeated at a fixed interval. How long a chunk's
// activation is held in the block, from its forward to its weight gradient, divided by the
// interval, is how many of them a rank holds at once. In a V the first chunk's time shrinks from
// rank to rank as the second's grows; with offsets f0, f1, i1, i0 between neighbours their sum is
// the same on all ranks when f1 + i1 = f0 + i0, and (f0 + f1 + i1 + i0) P units long.
//
// What the block fixes is the order of F and I. W goes where a rank would idle.
#include "pipeline/schedules/v_block.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "pipeline/weight_grads.h"

namespace megacore::pipeline {
namespace {

constexpr int kInterval = 6;  // F, I and W of two chunks

/// When the passes of the first microbatch start on a rank: F and I of chunk 0, F and I of chunk 1.
using Starts = std::array<int, 4>;

/// Starts with the given waits before the second chunk, before the backward, and before the first
/// chunk's backward.
std::vector<Starts> starts_of(const VBlock& block, int ranks, const std::array<int, 3>& waits) {
    const int last = ranks - 1;
    const int forward_1 = block.forward_0 * last + 1 + waits[0];
    const int input_grad_1 = forward_1 + block.forward_1 * last + 1 + waits[1];
    const int input_grad_0 = input_grad_1 + block.input_grad_1 * last + 1 + waits[2];
    std::vector<Starts> starts;
    for (int rank = 0; rank < ranks; ++rank) {
        starts.push_back({block.forward_0 * rank,
                          input_grad_0 + block.input_grad_0 * (last - rank),
                          forward_1 + block.forward_1 * (last - rank),
                          input_grad_1 + block.input_grad_1 * rank});
    }
    return starts;
}

bool collide(const std::vector<Starts>& starts) {
    return std::any_of(starts.begin(), starts.end(), [](const Starts& passes) {
        unsigned taken = 0;
        for (const int start : passes) {
            const unsigned slot = 1u << (start % kInterval);
            if (taken & slot) return true;
            taken |= slot;
        }
        return false;
    });
}

/// The block without collisions that waits least.
std::vector<Starts> place_block(const VBlock& block, int ranks) {
    for (int total = 0; total <= 3 * (kInterval - 1); ++total) {
        for (int first = 0; first <= std::min(total, kInterval - 1); ++first) {
            for (int second = 0; second <= std::min(total - first, kInterval - 1); ++second) {
                const int third = total - first - second;
                if (third >= kInterval) continue;
                std::vector<Starts> starts = starts_of(block, ranks, {first, second, third});
                if (!collide(starts)) return starts;
            }
        }
    }
    MEGACORE_CHECK(false, "the block cannot be repeated on ", ranks, " ranks");
    return {};
}

}  // namespace

Schedule repeat_v_block(std::string name,
                        const VBlock& block,
                        int max_live,
                        const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    const std::vector<Starts> starts = place_block(block, ranks);
    Schedule schedule{std::move(name), v_placement(ranks, count), {}};
    for (int rank = 0; rank < ranks; ++rank) {
        const auto [forward_0, input_grad_0, forward_1, input_grad_1] =
            starts[static_cast<std::size_t>(rank)];
        const int second = 2 * ranks - 1 - rank;
        const std::array<std::tuple<int, int, Kind>, 4> passes{{
            {forward_0, rank, Kind::kForward},
            {input_grad_0, rank, Kind::kInputGrad},
            {forward_1, second, Kind::kForward},
            {input_grad_1, second, Kind::kInputGrad},
        }};
        std::vector<std::pair<int, Action>> timed;
        timed.reserve(4 * static_cast<std::size_t>(count));
        for (int m = 0; m < count; ++m) {
            for (const auto& [start, stage, kind] : passes) {
                timed.push_back({start + kInterval * m, {stage, kind, m}});
            }
        }
        std::sort(timed.begin(), timed.end(), [](const auto& a, const auto& b) {
            return a.first < b.first;
        });
        std::vector<Action> steps;
        steps.reserve(timed.size());
        for (const auto& [time, step] : timed) steps.push_back(step);
        schedule.ranks.push_back(std::move(steps));
    }
    return fill_weight_grads(std::move(schedule), options.costs, max_live);
}

}  // namespace megacore::pipeline
