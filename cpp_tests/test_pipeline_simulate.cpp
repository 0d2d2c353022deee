// The simulation against times worked out by hand and against a solver that knows no order.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "pipeline/simulate.h"

namespace megacore::pipeline {
namespace {

std::vector<Action> steps(const std::string& text) {
    std::vector<Action> out;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find(' ', begin), text.size());
        out.push_back(parse_action(text.substr(begin, end - begin)));
        begin = end + 1;
    }
    return out;
}

Schedule by_hand(Placement placement, const std::vector<std::string>& ranks) {
    Schedule schedule{"by-hand", std::move(placement), {}};
    for (const std::string& rank : ranks) schedule.ranks.push_back(steps(rank));
    return schedule;
}

Schedule two_stages() {
    return by_hand(plain_placement(2, 3), {"0F0 0F1 0B0 0F2 0B1 0B2", "1F0 1B0 1F1 1B1 1F2 1B2"});
}

std::string error_of(const Schedule& schedule, const Costs& costs = {}) {
    try {
        simulate(schedule, costs);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(Simulate, TwoStagesByHand) {
    Costs costs;
    costs.forward_us = {1.0, 3.0};
    costs.input_grad_us = {1.5};
    costs.weight_grad_us = {0.5, 2.5};
    costs.activation_bytes = {10.0, 7.0};
    const Simulation result = simulate(two_stages(), costs);
    // Rank 1: F 3, B 4; its first F ends at 1 + 3. Rank 0: B0 when rank 1's B0 is done, at 8.
    const std::vector<std::vector<double>> ends{{1, 2, 10, 11, 17, 24}, {4, 8, 11, 15, 18, 22}};
    for (std::size_t r = 0; r < 2; ++r) {
        for (std::size_t i = 0; i < 6; ++i) {
            EXPECT_DOUBLE_EQ(result.timeline[r][i].end_us, ends[r][i]) << r << " " << i;
        }
    }
    EXPECT_DOUBLE_EQ(result.makespan_us, 24.0);
    EXPECT_DOUBLE_EQ(result.span_us, 24.0);
    EXPECT_DOUBLE_EQ(result.ranks[0].busy_us, 9.0);
    EXPECT_DOUBLE_EQ(result.ranks[1].first_us, 1.0);
    EXPECT_DOUBLE_EQ(result.ranks[1].last_us, 22.0);
    EXPECT_DOUBLE_EQ(result.bubble_fraction, 1.0 - 30.0 / 48.0);
    EXPECT_EQ(result.ranks[0].peak_activations, 2);
    EXPECT_EQ(result.ranks[1].peak_activations, 1);
    EXPECT_DOUBLE_EQ(result.ranks[0].peak_bytes, 20.0);
    EXPECT_DOUBLE_EQ(result.ranks[1].peak_bytes, 7.0);
}

TEST(Simulate, FullBackwardMayCostItsOwnTime) {
    Costs costs;
    costs.backward_us = {1.25};
    EXPECT_DOUBLE_EQ(simulate(two_stages(), costs).ranks[0].busy_us, 3 * 2.25);
}

TEST(Simulate, TensorsFollowEachOtherOnTheirWay) {
    // Two activations are ready at 1 and 2; the way is busy for 5 with each, 2 more until it is
    // there.
    const Schedule schedule =
        by_hand(plain_placement(2, 2), {"0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"});
    Costs costs;
    costs.transfer_us = 5.0;
    costs.latency_us = 2.0;
    const Simulation result = simulate(schedule, costs);
    EXPECT_DOUBLE_EQ(result.timeline[1][0].start_us, 1.0 + 5.0 + 2.0);
    EXPECT_DOUBLE_EQ(result.timeline[1][1].start_us, 1.0 + 5.0 + 5.0 + 2.0);
}

TEST(Simulate, TransfersWaitForBothSidesAndComputeForNone) {
    const Schedule schedule =
        by_hand(plain_placement(2, 2), {"0F0 0SEND_F0 0F1 0SEND_F1", "1RECV_F0 1F0 1RECV_F1 1F1"});
    Costs costs;
    costs.forward_us = {1.0, 10.0};
    costs.transfer_us = 3.0;
    costs.latency_us = 0.5;
    costs.post_us = 0.25;
    const Simulation result = simulate(schedule, costs);
    // The first leaves at 1.25; the second only when it is asked for, after the first F of rank 1.
    EXPECT_DOUBLE_EQ(result.timeline[0][1].start_us, 1.25);
    EXPECT_DOUBLE_EQ(result.timeline[1][0].end_us, 4.75);
    EXPECT_DOUBLE_EQ(result.timeline[0][2].start_us, 1.25);
    EXPECT_DOUBLE_EQ(result.timeline[1][1].end_us, 14.75);
    EXPECT_DOUBLE_EQ(result.timeline[0][3].start_us, 15.0);
    EXPECT_DOUBLE_EQ(result.timeline[0][3].end_us, 18.0);
    EXPECT_DOUBLE_EQ(result.timeline[1][3].start_us, 18.5);
    EXPECT_DOUBLE_EQ(result.makespan_us, 28.5);
    EXPECT_DOUBLE_EQ(result.ranks[1].busy_us, 20.0);
}

TEST(Simulate, BucketsRunBesideCompute) {
    const Schedule schedule = by_hand(
        plain_placement(1, 2), {"0GATHER_PARAM0 0F0 0B0 0REDUCE_GRAD0 0REDUCE_GRAD1 0F1 0B1"});
    Costs costs;
    costs.gather_param_us = {4.0};
    costs.reduce_grad_us = {2.0};
    const Simulation result = simulate(schedule, costs);
    const std::vector<double> starts{0, 4, 5, 7, 9, 7, 8};
    for (std::size_t i = 0; i < starts.size(); ++i) {
        EXPECT_DOUBLE_EQ(result.timeline[0][i].start_us, starts[i]) << i;
    }
    EXPECT_DOUBLE_EQ(result.makespan_us, 11.0);
}

TEST(Simulate, WeightGradientsKeepPartOfTheMemory) {
    const Schedule schedule =
        by_hand(plain_placement(1, 3), {"0F0 0I0 0F1 0I1 0F2 0W0 0I2 0W1 0W2"});
    Costs costs;
    costs.activation_bytes = {8.0};
    costs.kept_bytes = {3.0};
    const Simulation result = simulate(schedule, costs);
    EXPECT_DOUBLE_EQ(result.ranks[0].peak_bytes, 8.0 + 3.0 + 3.0);
    EXPECT_EQ(result.ranks[0].peak_activations, 3);
    costs.kept_bytes = {};
    EXPECT_DOUBLE_EQ(simulate(schedule, costs).ranks[0].peak_bytes, 24.0);
}

TEST(Simulate, SaysWhatIsWrong) {
    const auto with = [](const std::string& first, const std::string& second) {
        return error_of(by_hand(plain_placement(2, 2), {first, second}));
    };
    const std::string second = "1F0 1B0 1F1 1B1";
    EXPECT_NE(with("0F1 0B1 0F0 0B0", second).find("deadlock"), std::string::npos);
    EXPECT_NE(with("0F1 0B1 0F0 0B0", second)
                  .find("rank 0, step 1: 0B1 waits for the gradient of stage 1 on rank 1"),
              std::string::npos);
    EXPECT_NE(with("0F1 0B1 0F0 0B0", second).find("rank 1    [1F0]"), std::string::npos);
    EXPECT_NE(with("0B0 0F0", second).find("rank 0, step 0: 0B0 comes before its F"),
              std::string::npos);
    EXPECT_NE(with("0F0 0F0", second).find("was done before"), std::string::npos);
    EXPECT_NE(with("0F0 0W0", second).find("comes before its I"), std::string::npos);
    EXPECT_NE(with("0F0 0B0 0W0", second).find("part of B"), std::string::npos);
    EXPECT_NE(with("0F0 0F2", second).find("0F2"), std::string::npos);
    EXPECT_NE(with("1F0", second).find("1F0"), std::string::npos);
    EXPECT_NE(with("0F0 0SEND_F0", "1F0").find("deadlock"), std::string::npos);
    EXPECT_NE(with("0F0 0SEND_F0", "").find("counterpart"), std::string::npos);
    EXPECT_NE(with("0SEND_F0", "").find("not computed"), std::string::npos);
    EXPECT_NE(with("0F0 0SEND_B0", "").find("ends of the model"), std::string::npos);
    EXPECT_NE(with("0F0 0F1 0SEND_F0 0SEND_F1", "1RECV_F1 1RECV_F0")
                  .find("rank 0 sends 0SEND_F0 when rank 1 waits for 1RECV_F1"),
              std::string::npos);
    EXPECT_NE(error_of(by_hand(v_placement(2, 1), {"0F0 0SEND_F0", "1RECV_F0 1F0 1SEND_F0"}))
                  .find("own rank"),
              std::string::npos);
    EXPECT_NE(error_of(by_hand(plain_placement(2, 2), {"0F0"})).find("2 ranks, found 1"),
              std::string::npos);
    Costs costs;
    costs.forward_us = {1.0, 2.0, 3.0};
    EXPECT_NE(error_of(two_stages(), costs).find("forward_us, found 3"), std::string::npos);
    costs.forward_us = {-1.0};
    EXPECT_NE(error_of(two_stages(), costs).find("found -1"), std::string::npos);
    costs.forward_us = {1.0};
    costs.latency_us = std::numeric_limits<double>::quiet_NaN();
    EXPECT_NE(error_of(two_stages(), costs).find("transfers"), std::string::npos);
}

/// The earliest times, found by raising all of them until nothing changes: it needs no order of
/// evaluation, so it shares nothing with the simulation but the rules.
double relaxed_makespan(const Schedule& schedule, const Costs& costs) {
    struct Step {
        Action action;
        double end;
    };
    std::map<std::tuple<int, int, bool>, double> ends;  // stage, microbatch, is backward
    const auto cost = [&](const Action& action) {
        const auto s = static_cast<std::size_t>(action.stage);
        switch (action.kind) {
            case Kind::kForward:
                return costs.forward_us[s];
            case Kind::kBackward:
                return costs.input_grad_us[s] + costs.weight_grad_us[s];
            case Kind::kInputGrad:
                return costs.input_grad_us[s];
            default:
                return costs.weight_grad_us[s];
        }
    };
    double makespan = 0.0;
    for (bool changed = true; changed;) {
        changed = false;
        for (const auto& rank : schedule.ranks) {
            double now = 0.0;
            for (const Action& action : rank) {
                const bool back = action.kind != Kind::kForward;
                const int source = back ? action.stage + 1 : action.stage - 1;
                double ready = 0.0;
                if (action.kind != Kind::kWeightGrad && source >= 0 &&
                    source < schedule.placement.num_stages()) {
                    const bool remote = schedule.placement.rank_of(source) !=
                                        schedule.placement.rank_of(action.stage);
                    ready = ends[{source, action.number, back}] + (remote ? costs.latency_us : 0.0);
                }
                now = std::max(now, ready) + cost(action);
                if (action.kind != Kind::kWeightGrad) {
                    double& end = ends[{action.stage, action.number, back}];
                    changed |= end != now;
                    end = now;
                }
                makespan = std::max(makespan, now);
            }
        }
    }
    return makespan;
}

TEST(Simulate, AgreesWithRelaxation) {
    std::mt19937_64 random(7);
    const auto uniform = [&](int low, int high) {
        return low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    };
    for (int trial = 0; trial < 200; ++trial) {
        const int ranks = uniform(1, 5);
        const int microbatches = uniform(1, 7);
        const Placement placement = trial % 2 == 0
                                        ? v_placement(ranks, microbatches)
                                        : interleaved_placement(ranks, uniform(1, 3), microbatches);
        // A random order in which everything can be done, dealt out to the ranks.
        Schedule schedule{"random", placement, {}};
        schedule.ranks.resize(static_cast<std::size_t>(ranks));
        const int stages = placement.num_stages();
        std::vector<int> progress(static_cast<std::size_t>(microbatches), 0);
        for (int left = 2 * stages * microbatches; left > 0;) {
            const auto m = static_cast<std::size_t>(uniform(0, microbatches - 1));
            if (progress[m] == 2 * stages) continue;
            const bool back = progress[m] >= stages;
            const int stage = back ? 2 * stages - 1 - progress[m] : progress[m];
            auto& list = schedule.ranks[static_cast<std::size_t>(placement.rank_of(stage))];
            const bool split = back && uniform(0, 1) == 1;
            const Kind kind = !back ? Kind::kForward : split ? Kind::kInputGrad : Kind::kBackward;
            list.push_back({stage, kind, static_cast<int>(m)});
            if (split) list.push_back({stage, Kind::kWeightGrad, static_cast<int>(m)});
            ++progress[m];
            --left;
        }
        Costs costs;
        for (auto* list : {&costs.forward_us, &costs.input_grad_us, &costs.weight_grad_us}) {
            list->assign(static_cast<std::size_t>(stages), 0.0);
            for (double& value : *list) value = uniform(0, 40) / 8.0;
        }
        costs.latency_us = uniform(0, 8) / 4.0;
        EXPECT_EQ(simulate(schedule, costs).makespan_us, relaxed_makespan(schedule, costs));
    }
}

}  // namespace
}  // namespace megacore::pipeline
