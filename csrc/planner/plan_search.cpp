#include "planner/plan_search.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "core/check.h"
#include "planner/candidates.h"

namespace megacore::planner {
namespace {

/// What makes two plans different for a reader: not the overlaps, of which the best are taken.
using PlanKey = std::tuple<int, int, int, int, bool, int, std::string, Sharding, Recompute>;

PlanKey key_of(const Layout& layout) {
    return {layout.tensor,
            layout.pipeline,
            layout.context,
            layout.micro_batch,
            layout.sequence_parallel,
            layout.virtual_stages,
            layout.schedule,
            layout.sharding,
            layout.recompute};
}

const char* name_of(Sharding sharding) {
    static constexpr const char* kNames[] = {
        "no_shard", "optim", "optim_grads", "optim_grads_params"};
    return kNames[static_cast<int>(sharding)];
}

const char* name_of(Recompute recompute) {
    static constexpr const char* kNames[] = {"none", "selective", "full"};
    return kNames[static_cast<int>(recompute)];
}

std::vector<std::pair<std::string, std::string>> choices_of(const Layout& layout) {
    return {{"tp", std::to_string(layout.tensor)},
            {"pp", std::to_string(layout.pipeline)},
            {"cp", std::to_string(layout.context)},
            {"micro_batch", std::to_string(layout.micro_batch)},
            {"schedule", layout.schedule},
            {"virtual_stages", std::to_string(layout.virtual_stages)},
            {"sequence_parallel", layout.sequence_parallel ? "on" : "off"},
            {"sharding", name_of(layout.sharding)},
            {"recompute", name_of(layout.recompute)}};
}

class Search {
public:
    Search(const Model& model, const Hardware& hardware, const SearchSpace& space)
        : model_(model), hardware_(hardware), space_(space), candidates_(model, hardware, space) {}

    SearchResult run() {
        simulate_best();
        add_alternatives(candidates_.counts());
        SearchResult result = std::move(candidates_.counts());
        result.simulated = simulated_;
        result.cut_short = cut_short_;
        for (auto& [key, plan] : found_) result.plans.push_back(std::move(plan));
        std::stable_sort(
            result.plans.begin(), result.plans.end(), [](const auto& a, const auto& b) {
                return a.second.step_s < b.second.step_s;
            });
        if (result.plans.size() > static_cast<std::size_t>(space_.top)) {
            result.plans.resize(static_cast<std::size_t>(space_.top));
        }
        std::stable_sort(result.rejections.begin(),
                         result.rejections.end(),
                         [](const auto& a, const auto& b) { return a.count > b.count; });
        return result;
    }

private:
    /// The estimate, where the layout fits.
    std::optional<Estimate> fitting(const Layout& layout) {
        ++simulated_;
        try {
            Estimate estimate = planner::estimate(model_, layout, hardware_, space_.global_batch);
            if (estimate.memory_bytes() <= space_.memory_bytes) return estimate;
            candidates_.reject("does not fit into memory", layout);
        } catch (const Error&) {
            candidates_.reject("the schedule cannot be made for so few micro-batches", layout);
        }
        return std::nullopt;
    }

    /// Time of the last of the best, or infinity.
    double worst() const {
        if (times_.size() < static_cast<std::size_t>(space_.top)) {
            return std::numeric_limits<double>::infinity();
        }
        return times_[static_cast<std::size_t>(space_.top) - 1];
    }

    void keep(const Layout& layout, Estimate estimate) {
        const double step_s = estimate.step_s;
        const auto [found, is_new] = found_.try_emplace(key_of(layout));
        if (!is_new && found->second.second.step_s <= step_s) return;
        if (!is_new)
            times_.erase(std::find(times_.begin(), times_.end(), found->second.second.step_s));
        times_.insert(std::lower_bound(times_.begin(), times_.end(), step_s), step_s);
        found->second = {layout, std::move(estimate)};
    }

    void simulate_best() {
        for (const Candidate& candidate : candidates_.list()) {
            if (candidate.bound_s > worst()) return;
            if (simulated_ >= space_.max_simulations) {
                cut_short_ = true;
                return;
            }
            const Layout layout = candidates_.layout_of(candidate);
            if (auto estimate = fitting(layout)) keep(layout, std::move(*estimate));
        }
    }

    /// For each value of each axis, the layout of the lowest bound that fits.
    void add_alternatives(SearchResult& result) {
        std::map<std::pair<std::string, std::string>, int> tries;
        for (const Candidate& candidate : candidates_.list()) {
            const Layout layout = candidates_.layout_of(candidate);
            std::optional<Estimate> estimate;
            for (const auto& choice : choices_of(layout)) {
                int& tried = tries[choice];
                if (tried >= kMaxTries) continue;
                if (!estimate) {
                    const auto found = found_.find(key_of(layout));
                    estimate = found != found_.end() ? found->second.second : fitting(layout);
                }
                ++tried;
                if (!estimate) break;
                tried = kMaxTries;
                result.alternatives.push_back({choice.first, choice.second, layout, *estimate});
            }
        }
    }

    /// Candidates of the lowest bounds that are tried for one value; the bound knows less about
    /// memory than the estimate.
    static constexpr int kMaxTries = 16;

    const Model& model_;
    const Hardware& hardware_;
    const SearchSpace& space_;
    Candidates candidates_;
    std::map<PlanKey, std::pair<Layout, Estimate>> found_;
    std::vector<double> times_;  // sorted, of the plans found
    std::int64_t simulated_ = 0;
    bool cut_short_ = false;
};

}  // namespace

SearchResult search(const Model& model, const Hardware& hardware, const SearchSpace& space) {
    return Search(model, hardware, space).run();
}

}  // namespace megacore::planner
