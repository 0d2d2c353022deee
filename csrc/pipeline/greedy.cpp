#include "pipeline/greedy.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::infinity();
/// Sums of bytes that are equal on paper differ by rounding.
constexpr double kSlack = 1e-9;

class Greedy {
public:
    Greedy(const Placement& placement,
           const Costs& costs,
           const GreedyPolicy& policy,
           const std::vector<std::vector<Action>>& order)
        : map_(placement),
          costs_(costs),
          policy_(policy),
          order_(order),
          input_(map_.num_slots(), kUnknown),
          grad_(map_.num_slots(), kUnknown),
          next_forward_(index(map_.num_stages())),
          next_backward_(index(map_.num_stages())),
          ranks_(index(map_.num_ranks())) {
        schedule_.placement = placement;
        schedule_.ranks.resize(ranks_.size());
        limit_ = policy.memory_limit * (1.0 + kSlack);
        for (int s = 0; s < map_.num_stages(); ++s) {
            next_forward_[index(s)] = next_backward_[index(s)] = map_.first_microbatch(s);
            ranks_[index(map_.rank(s))].stages.push_back(s);
            ranks_[index(map_.rank(s))].share_bytes += bytes(s) * (1.0 + kSlack);
            steps_left_ += 3 * map_.num_microbatches(s);
            if (map_.previous(s) >= 0) continue;
            for (int m = 0; m < map_.num_microbatches(s); ++m) {
                input_[map_.slot(s, map_.first_microbatch(s) + m)] = 0.0;
            }
        }
    }

    std::optional<Schedule> run() {
        for (int r = 0; r < map_.num_ranks(); ++r) events_.push({0.0, r});
        while (!events_.empty()) {
            const auto [now, rank] = events_.top();
            events_.pop();
            if (state(rank).free_us <= now) decide(rank, now);
        }
        if (steps_left_ > 0) return std::nullopt;
        return std::move(schedule_);
    }

private:
    struct State {
        std::vector<int> stages;
        double free_us = 0.0;
        double bytes = 0.0;
        double share_bytes = 0.0;  // of one microbatch in all of its stages
        bool warm = false;         // has done its first I
        Kind last = Kind::kInputGrad;
        std::size_t taken = 0;  // of the given order
        std::deque<Action> weights;
    };
    /// A step that could be next.
    struct Choice {
        Action action;
        double ready = kUnknown;
        bool fits = true;
    };

    static std::size_t index(int i) { return static_cast<std::size_t>(i); }
    State& state(int rank) { return ranks_[index(rank)]; }
    double bytes(int stage) const { return costs_.activation_bytes[index(stage)]; }
    double kept(int stage) const {
        return costs_.kept_bytes.empty() ? bytes(stage) : costs_.kept_bytes[index(stage)];
    }

    void decide(int rank, double now) {
        State& mine = state(rank);
        Choice forward;
        Choice backward;
        if (order_.empty()) {
            forward = best_forward(mine, now);
            backward = best_backward(mine, now);
        } else if (mine.taken < order_[index(rank)].size()) {
            const Action next = order_[index(rank)][mine.taken];
            (next.kind == Kind::kForward ? forward : backward) = given(mine, next);
        }
        const bool can_forward = forward.ready <= now && forward.fits;
        const bool can_backward = backward.ready <= now;
        if (can_forward && (!can_backward || prefers_forward(mine))) {
            start(rank, now, forward.action);
        } else if (can_backward) {
            start(rank, now, backward.action);
        } else if (!mine.weights.empty()) {
            const Action weight = mine.weights.front();
            const double cost = costs_.weight_grad_us[index(weight.stage)];
            const bool blocked = forward.ready <= now && !forward.fits;
            double next = backward.ready;
            if (forward.fits) next = std::min(next, forward.ready);
            if (blocked || next - now >= policy_.weight_fit * cost) start(rank, now, weight);
        }
    }

    bool prefers_forward(const State& mine) const {
        if (policy_.prefer == GreedyPolicy::Prefer::kForward) return true;
        return policy_.prefer == GreedyPolicy::Prefer::kAlternate && mine.last != Kind::kForward;
    }

    Choice given(const State& mine, const Action& next) const {
        const std::size_t slot = map_.slot(next.stage, next.number);
        if (next.kind == Kind::kForward) {
            return {next, input_[slot], mine.bytes + bytes(next.stage) <= limit_};
        }
        return {{next.stage, Kind::kInputGrad, next.number}, grad_[slot], true};
    }

    /// The F to take next: one that can start now before one that cannot, in order of preference
    /// by stage.
    Choice best_forward(const State& mine, double now) const {
        Choice best;
        for (const int s : mine.stages) {
            const int m = next_forward_[index(s)];
            if (!map_.has_slot(s, m)) continue;
            Choice choice{{s, Kind::kForward, m}, input_[map_.slot(s, m)], may_forward(mine, s)};
            prefer(best, choice, now, policy_.late_forward_first);
        }
        return best;
    }

    Choice best_backward(const State& mine, double now) const {
        Choice best;
        for (const int s : mine.stages) {
            const int m = next_backward_[index(s)];
            if (!map_.has_slot(s, m)) continue;
            const Choice choice{{s, Kind::kInputGrad, m}, grad_[map_.slot(s, m)], true};
            prefer(best, choice, now, policy_.late_backward_first);
        }
        return best;
    }

    /// Stages come in ascending order.
    static void prefer(Choice& best, const Choice& choice, double now, bool late_first) {
        const bool can = choice.ready <= now && choice.fits;
        const bool could = best.ready <= now && best.fits;
        const bool better = can != could               ? can
                            : can                      ? late_first
                            : choice.fits != best.fits ? choice.fits
                                                       : choice.ready < best.ready;
        if (better || best.ready == kUnknown) best = choice;
    }

    /// Whether the rank has memory for one more microbatch in stage `s`, such that those under way
    /// can still finish one after the other: each needs room in the rank's later stages of its
    /// chain before it gives any back (the banker's rule).
    bool may_forward(const State& mine, int s) const {
        double cap = limit_;
        if (!mine.warm && !policy_.warm_up_bytes.empty()) {
            const double warm_up = policy_.warm_up_bytes[index(map_.rank(s))] * (1.0 + kSlack);
            cap = std::min(limit_, std::max(warm_up, mine.share_bytes));
        }
        const double free = cap - mine.bytes - bytes(s);
        if (free < 0.0) return false;
        return finishes(mine, s, free);
    }

    bool finishes(const State& mine, int taken, double free) const {
        // What waits for its W comes back in any case.
        for (const Action& weight : mine.weights) free += kept(weight.stage);
        // Microbatches under way: from the oldest whose I is open in the rank's first stage to the
        // newest that entered it.
        for (const int first : mine.stages) {
            if (previous_here(mine, first) >= 0) continue;
            const int newest = next_forward_[index(first)] - (first == taken ? 0 : 1);
            for (int m = next_backward_[index(first)]; m <= newest; ++m) {
                double holds = 0.0;
                double needs = 0.0;
                for (const int s : mine.stages) {
                    if (map_.chain(s) != map_.chain(first)) continue;
                    const bool entered =
                        m < next_forward_[index(s)] || (s == taken && m == next_forward_[index(s)]);
                    const bool left = m < next_backward_[index(s)];
                    if (!entered) needs += bytes(s);
                    if (entered && !left) holds += bytes(s);
                }
                if (needs > free + kSlack * limit_) return false;
                free += holds;
            }
        }
        return true;
    }

    int previous_here(const State& mine, int stage) const {
        int previous = -1;
        for (const int s : mine.stages) {
            if (s < stage && map_.chain(s) == map_.chain(stage)) previous = s;
        }
        return previous;
    }

    void start(int rank, double now, Action action) {
        State& mine = state(rank);
        const std::size_t s = index(action.stage);
        double end = now;
        if (action.kind == Kind::kForward) {
            end += costs_.forward_us[s];
            ++next_forward_[s];
            mine.bytes += bytes(action.stage);
            const int next = map_.next(action.stage);
            if (next < 0) {
                arrive(grad_, action.stage, action.number, rank, end);
            } else {
                arrive(input_, next, action.number, rank, end);
            }
        } else if (action.kind == Kind::kInputGrad) {
            end += costs_.input_grad_us[s];
            ++next_backward_[s];
            mine.bytes -= bytes(action.stage) - kept(action.stage);
            mine.warm = true;
            mine.weights.push_back({action.stage, Kind::kWeightGrad, action.number});
            const int previous = map_.previous(action.stage);
            if (previous >= 0) arrive(grad_, previous, action.number, rank, end);
        } else {
            end += costs_.weight_grad_us[s];
            mine.bytes -= kept(action.stage);
            mine.weights.pop_front();
        }
        if (action.kind != Kind::kWeightGrad) {
            mine.last = action.kind;
            ++mine.taken;
        }
        schedule_.ranks[index(rank)].push_back(action);
        --steps_left_;
        mine.free_us = end;
        events_.push({end, rank});
    }

    /// What `rank` computes until `end` is input of (stage, microbatch) when it has got there.
    void arrive(std::vector<double>& arrivals, int stage, int number, int rank, double end) {
        const int target = map_.rank(stage);
        if (target != rank) end += costs_.transfer_us + costs_.latency_us;
        arrivals[map_.slot(stage, number)] = end;
        events_.push({end, target});
    }

    using Event = std::pair<double, int>;

    StageMap map_;
    const Costs& costs_;
    const GreedyPolicy& policy_;
    const std::vector<std::vector<Action>>& order_;
    double limit_ = 0.0;
    std::vector<double> input_;  // slot -> when its input is (known to be) there
    std::vector<double> grad_;
    std::vector<int> next_forward_;  // stage -> microbatch
    std::vector<int> next_backward_;
    std::vector<State> ranks_;
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    long long steps_left_ = 0;
    Schedule schedule_;
};

std::vector<std::vector<Action>> forwards_and_backwards(
    const std::vector<std::vector<Action>>& order) {
    std::vector<std::vector<Action>> out;
    for (const auto& steps : order) {
        auto& row = out.emplace_back();
        for (const Action& action : steps) {
            if (is_compute(action.kind) && action.kind != Kind::kWeightGrad) row.push_back(action);
        }
    }
    return out;
}

}  // namespace

std::optional<Schedule> greedy_schedule(const Placement& placement,
                                        const Costs& costs,
                                        const GreedyPolicy& policy,
                                        const std::vector<std::vector<Action>>& order) {
    const std::vector<std::vector<Action>> given = forwards_and_backwards(order);
    return Greedy(placement, costs, policy, given).run();
}

}  // namespace megacore::pipeline
