// Greedy schedules, their improvement, and the search over all of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/check.h"
#include "pipeline/greedy.h"
#include "pipeline/improve.h"
#include "pipeline/schedules.h"
#include "pipeline/search.h"
#include "schedule_support.h"

namespace megacore::pipeline {
namespace {

Costs share_of(double f, double i, double w, double latency = 0.0, double kept = 1.0) {
    Costs share;
    share.forward_us = {f};
    share.input_grad_us = {i};
    share.weight_grad_us = {w};
    share.latency_us = latency;
    share.kept_bytes = {kept};
    return share;
}

const std::vector<Costs> kShares{
    share_of(1, 1, 1), share_of(10, 13, 9, 1), share_of(3, 2, 1, 0.25), share_of(1, 2, 3, 0, 0.5)};

/// Quality of a schedule by name, and of nothing where it cannot be made.
std::vector<Quality> quality_of(const std::string& name, ScheduleOptions options, Costs share) {
    try {
        options.costs = share_costs(make_schedule(name, options).placement, share);
        return {Quality(simulate(make_schedule(name, options), options.costs))};
    } catch (const Error&) {
        return {};
    }
}

TEST(Greedy, EveryPolicyFinishesWithinItsMemory) {
    using Prefer = GreedyPolicy::Prefer;
    for (const int ranks : {1, 2, 3, 5, 8}) {
        for (const int microbatches : {1, 2, 7, 20}) {
            for (const Placement& placement : {plain_placement(ranks, microbatches),
                                               v_placement(ranks, microbatches),
                                               interleaved_placement(ranks, 3, microbatches)}) {
                for (const Costs& share : kShares) {
                    const Costs costs = share_costs(placement, share);
                    for (int k = 0; k < 36; ++k) {
                        GreedyPolicy policy;
                        policy.prefer = static_cast<Prefer>(k % 3);
                        policy.late_forward_first = k % 2 == 0;
                        policy.late_backward_first = k % 4 < 2;
                        policy.weight_fit = 0.5 * (k % 5);
                        policy.memory_limit = std::vector<double>{1, 1.5, 2.25, 4}[k % 4];
                        policy.warm_up_bytes.assign(static_cast<std::size_t>(ranks), 1.0 + k % 3);
                        const auto schedule = greedy_schedule(placement, costs, policy);
                        ASSERT_TRUE(schedule) << ranks << " " << microbatches << " " << k;
                        testing::expect_complete(*schedule);
                        const Quality quality(simulate(*schedule, costs));
                        ASSERT_LE(quality.peak_bytes, policy.memory_limit * (1 + 1e-6));
                    }
                }
            }
        }
    }
}

TEST(Greedy, KeepsAGivenOrder) {
    ScheduleOptions options;
    options.num_ranks = 4;
    options.num_microbatches = 6;
    const Schedule known = make_schedule("1f1b", options);
    GreedyPolicy policy;
    policy.memory_limit = 4.0;
    const auto schedule =
        greedy_schedule(known.placement, share_costs(known.placement, {}), policy, known.ranks);
    ASSERT_TRUE(schedule);
    testing::expect_complete(*schedule);
    for (std::size_t r = 0; r < known.ranks.size(); ++r) {
        std::vector<Action> left;
        for (Action step : schedule->ranks[r]) {
            if (step.kind == Kind::kWeightGrad) continue;
            if (step.kind == Kind::kInputGrad) step.kind = Kind::kBackward;
            left.push_back(step);
        }
        EXPECT_EQ(left, known.ranks[r]);
    }
    // 1F1B holds four microbatches on its first rank: its order does not fit into three.
    policy.memory_limit = 3.0;
    EXPECT_FALSE(
        greedy_schedule(known.placement, share_costs(known.placement, {}), policy, known.ranks));
}

TEST(Improve, FindsAMisplacedStep) {
    // Rank 0 does a weight gradient while rank 1 waits for its forward.
    const Schedule schedule = testing::by_hand(
        plain_placement(2, 2), {"0F0 0I0 0W0 0F1 0I1 0W1", "1F0 1I0 1W0 1F1 1I1 1W1"});
    const Costs costs = share_costs(schedule.placement, {});
    const Schedule better = improve(schedule, costs, 2.0, 100'000);
    testing::expect_complete(better);
    EXPECT_EQ(simulate(schedule, costs).makespan_us, 10.0);
    EXPECT_EQ(simulate(better, costs).makespan_us, 7.0);
    // With memory for one microbatch F 1 cannot come before W 0; I 0 still can wait for no one.
    const Schedule tight = improve(schedule, costs, 1.0, 100'000);
    EXPECT_EQ(simulate(tight, costs).makespan_us, 10.0);
    EXPECT_EQ(improve(schedule, costs, 2.0, 0).ranks, schedule.ranks);
}

TEST(Search, NeverWorseThanAnyScheduleThatFits) {
    for (const int ranks : {2, 3, 4, 6}) {
        for (const int microbatches : {2, 5, 12}) {
            ScheduleOptions sizes;
            sizes.num_ranks = ranks;
            sizes.num_microbatches = microbatches;
            for (const Costs& share : kShares) {
                for (const std::string& base : schedule_names()) {
                    if (base == "dualpipe") continue;  // holds the model twice
                    const auto known = quality_of(base, sizes, share);
                    if (known.empty()) continue;
                    SearchOptions options{ranks, microbatches, share, known[0].peak_bytes};
                    options.effort = 20'000;
                    const SearchResult found = search(options);
                    const Quality quality(found.simulation);
                    EXPECT_FALSE(known[0].better_than(quality))
                        << base << " " << ranks << " " << microbatches << ": "
                        << known[0].makespan_us << " against " << quality.makespan_us << " of "
                        << found.origin;
                    EXPECT_LE(quality.peak_bytes, known[0].peak_bytes * (1 + 1e-6));
                    testing::expect_complete(found.schedule);
                }
            }
        }
    }
}

TEST(Search, BetterThanZbVWhereStepsDiffer) {
    const Costs share = share_of(10, 13, 9, 1);
    ScheduleOptions sizes;
    sizes.num_ranks = 4;
    sizes.num_microbatches = 8;
    const Quality known = quality_of("zb-v", sizes, share).front();
    const SearchResult found = search({4, 8, share, known.peak_bytes});
    EXPECT_LT(found.simulation.makespan_us, known.makespan_us - 1.0) << found.origin;
}

TEST(Search, SameOptionsSameSchedule) {
    const SearchOptions options{3, 5, share_of(3, 2, 1, 0.25), 2.5};
    const SearchResult first = search(options);
    EXPECT_EQ(first.schedule.ranks, search(options).schedule.ranks);
    EXPECT_EQ(first.schedule.name, "search");
}

TEST(Search, SaysWhatIsMissing) {
    const auto error_of = [](double memory_limit) -> std::string {
        try {
            search({4, 8, {}, memory_limit});
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_NE(error_of(0.9).find("4 ranks and 8 microbatches fits into memory for 0.9"),
              std::string::npos);
    EXPECT_NE(error_of(0.9).find("the least found needs"), std::string::npos);
    EXPECT_NE(error_of(0.0).find("above 0"), std::string::npos);
    EXPECT_NE(error_of(std::numeric_limits<double>::quiet_NaN()).find("above 0"),
              std::string::npos);
}

}  // namespace
}  // namespace megacore::pipeline
