#include "pipeline/weight_grads.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// A run of the F and I steps that decides, rank by rank, when the W steps run.
class Filler {
public:
    Filler(const Schedule& schedule, const Costs& costs, int max_live, double patience)
        : schedule_(schedule),
          map_(schedule.placement),
          costs_(costs),
          patience_(patience),
          output_(map_.num_slots(), kNever),
          gradient_(map_.num_slots(), kNever),
          ranks_(schedule.ranks.size()) {
        for (std::size_t r = 0; r < ranks_.size(); ++r) {
            ranks_[r].max_live = std::max(max_live, live_of_order(schedule.ranks[r]));
            wake(0.0, static_cast<int>(r));
        }
    }

    void run() {
        while (!events_.empty()) {
            const auto [time, rank] = events_.top();
            events_.pop();
            if (time >= ranks_[static_cast<std::size_t>(rank)].free_us) take_step(rank, time);
        }
    }

    /// Longest time from first to last step of a rank, then the end of the last step of all.
    std::pair<double, double> times() const {
        double span = 0.0;
        double end = 0.0;
        for (const Rank& rank : ranks_) {
            span = std::max(span, rank.free_us - rank.start_us);
            end = std::max(end, rank.free_us);
        }
        return {span, end};
    }

    std::vector<Action> steps(std::size_t rank) const { return ranks_[rank].steps; }

private:
    struct Rank {
        std::size_t next = 0;
        int live = 0;
        int max_live = 0;
        double start_us = kNever;
        double free_us = 0.0;
        std::vector<Action> waiting;  // weight gradients, oldest first from `done` on
        std::size_t done = 0;
        std::vector<Action> steps;
    };

    static int live_of_order(const std::vector<Action>& steps) {
        int live = 0;
        int peak = 0;
        for (const Action& step : steps) {
            live += step.kind == Kind::kForward ? 1 : -1;
            peak = std::max(peak, live);
        }
        return peak;
    }

    static double at(const std::vector<double>& values, int stage) {
        return values.size() == 1 ? values.front() : values[static_cast<std::size_t>(stage)];
    }

    void wake(double time, int rank) { events_.push({time, rank}); }

    double hop(int from, int to) const {
        if (map_.rank(from) == map_.rank(to)) return 0.0;
        return costs_.transfer_us + costs_.latency_us;
    }

    /// When what the step needs is on its rank; kNever while that is not known.
    double ready(const Action& step) const {
        const bool forward = step.kind == Kind::kForward;
        const int from = forward ? map_.previous(step.stage) : map_.next(step.stage);
        if (from < 0) return forward ? 0.0 : output_[map_.slot(step.stage, step.number)];
        const auto& produced = forward ? output_ : gradient_;
        return produced[map_.slot(from, step.number)] + hop(from, step.stage);
    }

    void take_step(int index, double now) {
        Rank& rank = ranks_[static_cast<std::size_t>(index)];
        const std::vector<Action>& order = schedule_.ranks[static_cast<std::size_t>(index)];
        const bool has_weight_grad = rank.done < rank.waiting.size();
        double next = kNever;
        if (rank.next < order.size()) {
            const Action& step = order[rank.next];
            const bool full = step.kind == Kind::kForward && rank.live >= rank.max_live;
            if (!full) next = ready(step);
        }
        if (next <= now) {
            start(index, order[rank.next++], now);
        } else if (has_weight_grad) {
            const Action& weight_grad = rank.waiting[rank.done];
            // Patient ranks are woken again when their next step is ready.
            if (next < now + patience_ * at(costs_.weight_grad_us, weight_grad.stage)) return;
            ++rank.done;
            start(index, Action{weight_grad}, now);
        }
    }

    void start(int index, const Action& step, double now) {
        Rank& rank = ranks_[static_cast<std::size_t>(index)];
        rank.steps.push_back(step);
        rank.start_us = std::min(rank.start_us, now);
        const int stage = step.stage;
        if (step.kind == Kind::kForward) {
            rank.free_us = now + at(costs_.forward_us, stage);
            ++rank.live;
            produce(output_, step, map_.next(stage), rank.free_us);
        } else if (step.kind == Kind::kInputGrad) {
            rank.free_us = now + at(costs_.input_grad_us, stage);
            rank.waiting.push_back({stage, Kind::kWeightGrad, step.number});
            produce(gradient_, step, map_.previous(stage), rank.free_us);
        } else {
            rank.free_us = now + at(costs_.weight_grad_us, stage);
            --rank.live;
        }
        wake(rank.free_us, index);
    }

    void produce(std::vector<double>& produced, const Action& step, int consumer, double time) {
        produced[map_.slot(step.stage, step.number)] = time;
        if (consumer >= 0) wake(time + hop(step.stage, consumer), map_.rank(consumer));
    }

    using Wake = std::pair<double, int>;

    const Schedule& schedule_;
    StageMap map_;
    const Costs& costs_;
    double patience_;
    std::vector<double> output_;    // slot -> when its F ends
    std::vector<double> gradient_;  // slot -> when its I ends
    std::vector<Rank> ranks_;
    std::priority_queue<Wake, std::vector<Wake>, std::greater<>> events_;
};

/// With steps of one length and no transfers there is nothing to wait for that is shorter.
bool uniform(const Costs& costs) {
    const auto same = [&](const std::vector<double>& values) {
        return values.size() == 1 && values.front() == costs.forward_us.front();
    };
    return same(costs.forward_us) && same(costs.input_grad_us) && same(costs.weight_grad_us) &&
           costs.transfer_us + costs.latency_us == 0.0;
}

}  // namespace

Schedule fill_weight_grads(Schedule schedule, const Costs& costs, int max_live) {
    check_costs(costs, schedule.placement.num_stages());
    const std::vector<double> patiences =
        uniform(costs) ? std::vector<double>{0.0} : std::vector<double>{0.0, 0.5, 1.0};
    std::pair<double, double> best{kNever, kNever};
    std::vector<std::vector<Action>> steps(schedule.ranks.size());
    for (const double patience : patiences) {
        Filler filler(schedule, costs, max_live, patience);
        filler.run();
        if (filler.times() >= best) continue;
        best = filler.times();
        for (std::size_t r = 0; r < steps.size(); ++r) steps[r] = filler.steps(r);
    }
    schedule.ranks = std::move(steps);
    return schedule;
}

}  // namespace megacore::pipeline
