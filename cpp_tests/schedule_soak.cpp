#include "schedule_soak.h"

#include <algorithm>
#include <random>
#include <sstream>
#include <vector>

#include "core/check.h"
#include "pipeline/communication.h"
#include "pipeline/schedules.h"
#include "pipeline/simulate.h"
#include "pipeline/validate.h"

namespace megacore::testing {
namespace {

using namespace megacore::pipeline;

class Draw {
public:
    explicit Draw(std::uint64_t seed) : engine_(seed) {}

    int integer(int low, int high) {
        return low + static_cast<int>(engine_() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool one_in(int count) { return integer(1, count) == 1; }

    /// Mostly small, where every awkward ratio of ranks to microbatches comes up.
    int size(int usual, int rare) { return one_in(20) ? integer(1, rare) : integer(1, usual); }

    /// One value or one per stage, in eighths, so that sums are exact.
    std::vector<double> times(int num_stages, int least) {
        std::vector<double> values(one_in(3) ? static_cast<std::size_t>(num_stages) : 1);
        for (double& value : values) value = integer(least, 80) / 8.0;
        return values;
    }

    Costs costs(int num_stages) {
        Costs costs;
        if (one_in(4)) return costs;
        costs.forward_us = times(num_stages, 1);
        costs.input_grad_us = times(num_stages, 1);
        costs.weight_grad_us = times(num_stages, 0);
        if (one_in(2)) costs.transfer_us = integer(0, 40) / 8.0;
        if (one_in(2)) costs.latency_us = integer(0, 40) / 8.0;
        return costs;
    }

    /// Steps of a random order that can run, on a chain whose stages lie on random ranks.
    Schedule random_order() {
        Placement placement;
        placement.num_ranks = size(6, 12);
        placement.chains = {{}};
        for (int i = size(10, 20); i > 0; --i) {
            placement.chains[0].push_back(integer(0, placement.num_ranks - 1));
        }
        const int count = size(8, 20);
        placement.microbatches = {{0, count}};
        Schedule schedule{"random", placement, {}};
        schedule.ranks.resize(static_cast<std::size_t>(placement.num_ranks));

        std::vector<Action> ready;
        for (int m = 0; m < count; ++m) ready.push_back({0, Kind::kForward, m});
        const int last = placement.num_stages() - 1;
        while (!ready.empty()) {
            const auto pick =
                static_cast<std::size_t>(integer(0, static_cast<int>(ready.size()) - 1));
            const Action step = ready[pick];
            ready[pick] = ready.back();
            ready.pop_back();
            schedule.ranks[static_cast<std::size_t>(placement.rank_of(step.stage))].push_back(step);
            const auto backward = [&](int stage) {
                ready.push_back(
                    {stage, one_in(2) ? Kind::kBackward : Kind::kInputGrad, step.number});
            };
            if (step.kind == Kind::kForward) {
                if (step.stage == last) {
                    backward(last);
                } else {
                    ready.push_back({step.stage + 1, Kind::kForward, step.number});
                }
            } else if (step.kind != Kind::kWeightGrad) {
                if (step.stage > 0) backward(step.stage - 1);
                if (step.kind == Kind::kInputGrad) {
                    ready.push_back({step.stage, Kind::kWeightGrad, step.number});
                }
            }
        }
        return schedule;
    }

private:
    std::mt19937_64 engine_;
};

/// One of the known schedules; sizes are drawn until it can be made.
Schedule known_schedule(Draw& draw, Costs& costs) {
    const auto& names = schedule_names();
    const std::string& name =
        names[static_cast<std::size_t>(draw.integer(0, static_cast<int>(names.size()) - 1))];
    ScheduleOptions options;
    options.num_ranks = draw.size(9, 24);
    options.num_microbatches = draw.size(26, 80);
    int chunks = 2;
    if (name == "interleaved") {
        chunks = options.num_chunks = draw.integer(1, 5);
        if (draw.one_in(2)) options.microbatch_group_size = options.num_ranks + draw.integer(0, 4);
    } else if (name == "dualpipe") {
        options.num_ranks += options.num_ranks % 2;
        options.num_microbatches += 1;
    } else if (name == "gpipe" || name == "1f1b" || name == "zb-h1" || name == "zb-h2") {
        chunks = 1;
    }
    costs = draw.costs(options.num_ranks * chunks);
    options.costs = costs;
    return make_schedule(name, options);
}

std::string describe(const Schedule& schedule, std::uint64_t seed, const std::string& what) {
    std::ostringstream text;
    text << schedule.name << " with " << schedule.placement.num_ranks << " ranks, "
         << schedule.placement.num_stages() << " stages, " << schedule.placement.num_microbatches()
         << " microbatches (seed " << seed << "): " << what;
    return text.str();
}

void check_simulation(const Schedule& schedule,
                      const Costs& costs,
                      const std::vector<double>& peaks) {
    const Simulation result = simulate(schedule, costs);
    double busiest = 0.0;
    for (std::size_t rank = 0; rank < peaks.size(); ++rank) {
        busiest = std::max(busiest, result.ranks[rank].busy_us);
        MEGACORE_CHECK(result.timeline[rank].size() == schedule.ranks[rank].size(),
                       "the simulation lost steps of rank ",
                       rank);
        MEGACORE_CHECK(result.ranks[rank].peak_activations == static_cast<int>(peaks[rank]),
                       "rank ",
                       rank,
                       " holds ",
                       result.ranks[rank].peak_activations,
                       " activations in the simulation and ",
                       peaks[rank],
                       " in validation");
    }
    MEGACORE_CHECK(result.makespan_us >= busiest * (1.0 - 1e-12),
                   "the simulation ends after ",
                   result.makespan_us,
                   " us, a rank is busy for ",
                   busiest);
}

}  // namespace

SoakReport soak_schedules(std::int64_t plans, std::uint64_t seed) {
    SoakReport report;
    for (; report.plans < plans; ++report.plans) {
        // A seed of its own, so that a plan that fails can be made without those before it.
        const std::uint64_t plan_seed = seed + static_cast<std::uint64_t>(report.plans);
        Draw draw(plan_seed);
        Schedule schedule;
        try {
            Costs costs;
            if (draw.one_in(11)) {
                schedule = draw.random_order();
                costs = draw.costs(schedule.placement.num_stages());
            } else {
                schedule = known_schedule(draw, costs);
            }
            const std::vector<double> peaks = validate(schedule);
            const Schedule connected = add_communication(schedule, draw.integer(0, 4));
            MEGACORE_CHECK(validate(connected) == peaks, "transfers changed the activations held");
            check_simulation(schedule, costs, peaks);
            check_simulation(connected, costs, peaks);
            for (const auto& steps : connected.ranks) {
                report.steps += static_cast<std::int64_t>(steps.size());
            }
        } catch (const Error& error) {
            report.failure = describe(schedule, plan_seed, error.what());
            return report;
        }
    }
    return report;
}

}  // namespace megacore::testing
