#include "pipeline/improve.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core/check.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr double kRounding = 1e-9;

/// A step: its rank and its place there.
struct Place {
    std::size_t rank = 0;
    std::size_t step = 0;
};

/// The places of the critical path, last first.
std::vector<Place> critical_path(const StageMap& map, const Simulation& result) {
    // Where the output (gradient) of each slot was computed.
    std::vector<Place> forward(map.num_slots());
    std::vector<Place> backward(map.num_slots());
    Place now;
    double end = -1.0;
    for (std::size_t r = 0; r < result.timeline.size(); ++r) {
        for (std::size_t i = 0; i < result.timeline[r].size(); ++i) {
            const Event& event = result.timeline[r][i];
            const std::size_t slot = map.slot(event.action.stage, event.action.number);
            if (event.action.kind == Kind::kForward) forward[slot] = {r, i};
            if (event.action.kind == Kind::kBackward || event.action.kind == Kind::kInputGrad) {
                backward[slot] = {r, i};
            }
            if (event.end_us > end) {
                end = event.end_us;
                now = {r, i};
            }
        }
    }
    std::vector<Place> path{now};
    while (true) {
        const Event& event = result.timeline[now.rank][now.step];
        const double slack = kRounding * result.makespan_us;
        if (now.step > 0 &&
            result.timeline[now.rank][now.step - 1].end_us >= event.start_us - slack) {
            now = {now.rank, now.step - 1};
        } else {
            const bool is_forward = event.action.kind == Kind::kForward;
            const int source =
                is_forward ? map.previous(event.action.stage) : map.next(event.action.stage);
            if (source < 0 || event.action.kind == Kind::kWeightGrad) break;
            now = (is_forward ? forward : backward)[map.slot(source, event.action.number)];
        }
        path.push_back(now);
    }
    return path;
}

class Improver {
public:
    Improver(Schedule schedule, const Costs& costs, double memory_limit, std::int64_t effort)
        : schedule_(std::move(schedule)),
          map_(schedule_.placement),
          costs_(costs),
          memory_limit_(memory_limit * (1.0 + kRounding)),
          effort_(effort) {
        for (const auto& steps : schedule_.ranks) {
            num_steps_ += static_cast<std::int64_t>(steps.size());
        }
    }

    Schedule run() {
        std::optional<Simulation> now = simulated();
        while (now) now = better(*now);
        return std::move(schedule_);
    }

private:
    /// The simulation of the schedule as it is, unless it cannot run or needs too much memory, or
    /// the effort is spent.
    std::optional<Simulation> simulated() {
        effort_ -= num_steps_;
        if (effort_ < 0) return std::nullopt;
        try {
            Simulation result = simulate(schedule_, costs_);
            if (Quality(result).peak_bytes > memory_limit_) return std::nullopt;
            return result;
        } catch (const Error&) {
            return std::nullopt;  // the moved step waits for itself
        }
    }

    /// Makes the first move found that is an improvement.
    std::optional<Simulation> better(const Simulation& now) {
        const Quality quality(now);
        for (const Place& place : critical_path(map_, now)) {
            const auto size = static_cast<std::ptrdiff_t>(schedule_.ranks[place.rank].size());
            for (const std::ptrdiff_t distance : {-1, 1, -2, 2, -4, 4, -8, 8}) {
                const auto from = static_cast<std::ptrdiff_t>(place.step);
                const std::ptrdiff_t to = from + distance;
                if (to < 0 || to >= size || !allowed(place.rank, from, to)) continue;
                move(place.rank, from, to);
                std::optional<Simulation> moved = simulated();
                if (moved && Quality(*moved).better_than(quality)) return moved;
                move(place.rank, to, from);
                if (effort_ < 0) return std::nullopt;
            }
        }
        return std::nullopt;
    }

    /// Whether no step of the same stage and microbatch is passed, and the microbatches of each
    /// stage stay in order.
    bool allowed(std::size_t rank, std::ptrdiff_t from, std::ptrdiff_t to) const {
        const std::vector<Action>& steps = schedule_.ranks[rank];
        const Action& moved = steps[static_cast<std::size_t>(from)];
        for (std::ptrdiff_t i = std::min(from, to); i <= std::max(from, to); ++i) {
            const Action& other = steps[static_cast<std::size_t>(i)];
            if (i == from || other.stage != moved.stage) continue;
            if (other.number == moved.number || other.kind == moved.kind) return false;
        }
        return true;
    }

    void move(std::size_t rank, std::ptrdiff_t from, std::ptrdiff_t to) {
        const auto steps = schedule_.ranks[rank].begin();
        if (from < to) {
            std::rotate(steps + from, steps + from + 1, steps + to + 1);
        } else {
            std::rotate(steps + to, steps + from, steps + from + 1);
        }
    }

    Schedule schedule_;
    StageMap map_;
    const Costs& costs_;
    double memory_limit_;
    std::int64_t effort_;
    std::int64_t num_steps_ = 0;
};

}  // namespace

Quality::Quality(const Simulation& result)
    : makespan_us(result.makespan_us), span_us(result.span_us) {
    for (const RankUse& rank : result.ranks) peak_bytes = std::max(peak_bytes, rank.peak_bytes);
}

bool Quality::better_than(const Quality& other) const {
    const auto compare = [](double a, double b) {
        const double slack = kRounding * std::max(a, b);
        return a < b - slack ? -1 : a > b + slack ? 1 : 0;
    };
    int order = compare(makespan_us, other.makespan_us);
    if (order == 0) order = compare(span_us, other.span_us);
    if (order == 0) order = compare(peak_bytes, other.peak_bytes);
    return order < 0;
}

Schedule improve(Schedule schedule, const Costs& costs, double memory_limit, std::int64_t effort) {
    return Improver(std::move(schedule), costs, memory_limit, effort).run();
}

}  // namespace megacore::pipeline
