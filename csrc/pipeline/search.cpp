#include "pipeline/search.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "pipeline/costs.h"
#include "pipeline/greedy.h"
#include "pipeline/improve.h"
#include "pipeline/refuse.h"
#include "pipeline/schedules.h"

namespace megacore::pipeline {
namespace {

class Search {
public:
    explicit Search(const SearchOptions& options) : options_(options) {
        if (!(options.memory_limit > 0.0)) {
            refuse("a schedule search needs a memory limit above 0, found ", options.memory_limit);
        }
    }

    SearchResult run() {
        known_schedules();
        const int ranks = options_.num_ranks;
        const int microbatches = options_.num_microbatches;
        greedy_schedules(plain_placement(ranks, microbatches), "one stage per rank");
        greedy_schedules(v_placement(ranks, microbatches), "two stages per rank in a V");
        greedy_schedules(interleaved_placement(ranks, 2, microbatches), "two stages per rank");
        if (!best_) {
            refuse("no schedule of ",
                   ranks,
                   " ranks and ",
                   microbatches,
                   " microbatches fits into memory for ",
                   options_.memory_limit,
                   " microbatches on each rank",
                   least_bytes_ < std::numeric_limits<double>::infinity()
                       ? detail::concatenate("; the least found needs ", least_bytes_)
                       : "");
        }
        polish();
        return std::move(*best_);
    }

private:
    double unit() const { return options_.share.activation_bytes.front(); }
    double limit_bytes() const { return options_.memory_limit * unit(); }

    /// Takes over a candidate that fits and is better than all before it.
    void consider(Schedule schedule, const Costs& costs, const std::string& origin) {
        Simulation result = simulate(schedule, costs);
        const Quality quality(result);
        least_bytes_ = std::min(least_bytes_, quality.peak_bytes / unit());
        if (quality.peak_bytes > limit_bytes() * (1.0 + 1e-9)) return;
        if (best_ && !quality.better_than(Quality(best_->simulation))) return;
        best_ = {std::move(schedule), costs, std::move(result), origin};
    }

    void known_schedules() {
        for (const std::string& name : schedule_names()) {
            ScheduleOptions options;
            options.num_ranks = options_.num_ranks;
            options.num_microbatches = options_.num_microbatches;
            std::optional<Schedule> schedule;
            Costs costs;
            try {
                costs = share_costs(make_schedule(name, options).placement, options_.share);
                options.costs = costs;
                schedule = make_schedule(name, options);
            } catch (const Error&) {
                continue;  // it cannot be made for these numbers
            }
            if (schedule->placement.chains.size() > 1) continue;
            GreedyPolicy policy;
            policy.memory_limit = limit_bytes();
            for (const double fit : {1.0, 0.5, 0.0}) {
                policy.weight_fit = fit;
                auto refilled =
                    greedy_schedule(schedule->placement, costs, policy, schedule->ranks);
                if (refilled) consider(std::move(*refilled), costs, name + " with W moved");
            }
            consider(std::move(*schedule), costs, name);
        }
    }

    void greedy_schedules(const Placement& placement, const std::string& what) {
        const Costs costs = share_costs(placement, options_.share);
        GreedyPolicy policy;
        policy.memory_limit = limit_bytes();
        using Prefer = GreedyPolicy::Prefer;
        for (const auto prefer : {Prefer::kBackward, Prefer::kForward, Prefer::kAlternate}) {
            for (const double fit : {1.0, 0.5, 0.0}) {
                for (const int late : {0, 1, 2, 3}) {
                    for (const double warm_up : {1.0, 0.75, 0.5}) {
                        policy.prefer = prefer;
                        policy.weight_fit = fit;
                        policy.late_forward_first = (late & 1) != 0;
                        policy.late_backward_first = (late & 2) != 0;
                        policy.warm_up_bytes.assign(static_cast<std::size_t>(options_.num_ranks),
                                                    warm_up * limit_bytes());
                        auto schedule = greedy_schedule(placement, costs, policy);
                        if (schedule) consider(std::move(*schedule), costs, "greedy, " + what);
                    }
                }
            }
        }
    }

    void polish() {
        const Schedule before = best_->schedule;
        Schedule after = improve(before, best_->costs, limit_bytes(), options_.effort);
        if (after.ranks == before.ranks) return;
        best_->simulation = simulate(after, best_->costs);
        best_->schedule = std::move(after);
        best_->origin += ", improved step by step";
    }

    const SearchOptions& options_;
    std::optional<SearchResult> best_;
    double least_bytes_ = std::numeric_limits<double>::infinity();
};

}  // namespace

SearchResult search(const SearchOptions& options) {
    SearchResult result = Search(options).run();
    result.schedule.name = "search";
    return result;
}

}  // namespace megacore::pipeline
