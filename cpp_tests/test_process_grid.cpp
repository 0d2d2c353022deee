#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "comm/process_grid.h"
#include "core/check.h"

namespace {

using megacore::comm::Degrees;
using megacore::comm::ProcessGrid;
using Groups = std::vector<std::vector<int>>;

/// That `call` throws an error whose message contains `text`.
template <class Call>
void expect_error(Call call, const std::string& text) {
    try {
        call();
    } catch (const megacore::Error& error) {
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
        return;
    }
    ADD_FAILURE() << "no error; expected: " << text;
}

TEST(ProcessGrid, EightRanksAsInThePaperOfMegatron) {
    const ProcessGrid grid(8, {.tensor = 2, .pipeline = 2});
    EXPECT_EQ(grid.degree("dp"), 2);
    EXPECT_EQ(grid.groups("tp"), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
    EXPECT_EQ(grid.groups("dp"), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
    EXPECT_EQ(grid.groups("pp"), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
    EXPECT_EQ(grid.groups("tp-pp"), (Groups{{0, 1, 4, 5}, {2, 3, 6, 7}}));
    EXPECT_EQ(grid.groups("pp-tp"), grid.groups("tp-pp"));
    EXPECT_EQ(grid.group("pp", 6), (std::vector<int>{2, 6}));
}

TEST(ProcessGrid, OtherOrder) {
    const ProcessGrid grid(8, {.tensor = 2, .pipeline = 2}, "tp-pp-dp");
    EXPECT_EQ(grid.groups("pp"), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
    EXPECT_EQ(grid.groups("dp"), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
}

TEST(ProcessGrid, ExpertsAreCarvedFromTheReplicas) {
    const ProcessGrid grid(16, {.tensor = 2, .pipeline = 2, .expert = 2});
    EXPECT_EQ(grid.degree("dp"), 4);
    EXPECT_EQ(grid.degree("edp"), 2);
    EXPECT_EQ(grid.group("ep", 0), (std::vector<int>{0, 2}));
    EXPECT_EQ(grid.group("edp", 0), (std::vector<int>{0, 4}));
    EXPECT_EQ(grid.group("dp", 0), (std::vector<int>{0, 2, 4, 6}));
    // Whole experts: the ranks of a tensor group hold different ones.
    const ProcessGrid whole(8, {.tensor = 2, .expert = 4, .expert_tensor = 1});
    EXPECT_EQ(whole.group("ep", 0), (std::vector<int>{0, 1, 2, 3}));
    EXPECT_EQ(whole.group("edp", 1), (std::vector<int>{1, 5}));
}

TEST(ProcessGrid, GroupsOfStages) {
    const ProcessGrid grid(8, {.tensor = 2, .pipeline = 4});
    EXPECT_EQ(grid.pipeline_group({0, 3}, 1), (std::vector<int>{1, 7}));
    EXPECT_EQ(grid.pipeline_group({3, 0}, 7), (std::vector<int>{1, 7}));
    EXPECT_EQ(grid.pipeline_group({0, 3}, 2), (std::vector<int>{2}));
    EXPECT_EQ(grid.pipeline_group({0, 0}, 0), (std::vector<int>{0}));
    EXPECT_EQ(grid.pipeline_group({}, 5), (std::vector<int>{5}));
}

int random_divisor(int number, std::mt19937& random) {
    std::vector<int> divisors;
    for (int i = 1; i <= number; ++i) {
        if (number % i == 0) {
            divisors.push_back(i);
        }
    }
    return divisors[random() % divisors.size()];
}

TEST(ProcessGrid, EveryGroupingIsAPartitionAndAxesMeetInOneRank) {
    std::mt19937 random(5);
    for (int trial = 0; trial < 60; ++trial) {
        const int world = trial == 0 ? 16384 : 1 + static_cast<int>(random() % 1500);
        Degrees degrees;
        degrees.tensor = random_divisor(world, random);
        degrees.context = random_divisor(world / degrees.tensor, random);
        degrees.pipeline = random_divisor(world / degrees.tensor / degrees.context, random);
        std::vector<std::string> order = {"tp", "cp", "ep", "dp", "pp"};
        std::shuffle(order.begin(), order.end(), random);
        std::string text = order[0];
        for (std::size_t i = 1; i < order.size(); ++i) {
            text += "-" + order[i];
        }
        const ProcessGrid grid(world, degrees, text);
        for (const char* axes : {"tp", "dp", "cp-dp", "tp-pp", "tp-cp-dp-pp"}) {
            std::set<int> seen;
            for (const std::vector<int>& group : grid.groups(axes)) {
                EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
                EXPECT_EQ(group, grid.group(axes, group.back()));
                for (const int rank : group) {
                    EXPECT_TRUE(seen.insert(rank).second);
                }
            }
            EXPECT_EQ(seen.size(), static_cast<std::size_t>(world));
        }
        const int rank = static_cast<int>(random() % world);
        std::vector<int> ranks(world);
        std::iota(ranks.begin(), ranks.end(), 0);
        EXPECT_EQ(grid.group("tp-cp-dp-pp", rank), ranks);
        const std::vector<int> a = grid.group("tp-cp", rank);
        const std::vector<int> b = grid.group("dp-pp", rank);
        std::vector<int> common;
        std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
        EXPECT_EQ(common, (std::vector<int>{rank}));
        EXPECT_EQ(grid.group("cp", rank)[grid.coordinate("cp", rank)], rank);
    }
}

TEST(ProcessGrid, RefusesDegreesThatDoNotFit) {
    expect_error([&] { ProcessGrid(0, {}); }, "at least 1 process");
    expect_error([&] { ProcessGrid(8, {.tensor = 0}); },
                 "tensor-parallel degree must be at least 1, got 0");
    expect_error([&] { ProcessGrid(12, {.tensor = 8}); },
                 "a world of 12 is no multiple of tensor 8");
    expect_error([&] { ProcessGrid(12, {.tensor = 2, .pipeline = 4}); },
                 "no multiple of tensor 2 * context 1 * pipeline 4");
    expect_error([&] { ProcessGrid(2, {.tensor = 1 << 30, .context = 1 << 30}); },
                 "no multiple of tensor");
    expect_error([&] { ProcessGrid(8, {.pipeline = 4, .expert = 4}); },
                 "no multiple of pipeline 4 * expert 4");
}

TEST(ProcessGrid, RefusesWrongOrdersAxesAndRanks) {
    expect_error([&] { ProcessGrid(2, {}, "tp-pp"); }, "dp is missing");
    expect_error([&] { ProcessGrid(2, {.context = 2}, "tp-pp-dp"); },
                 "cp is missing, and its degree is 2");
    expect_error([&] { ProcessGrid(2, {}, "tp-dp-tp"); }, "tp occurs twice");
    expect_error([&] { ProcessGrid(2, {}, "tp-dp-xp"); }, "'xp' is no axis");
    expect_error([&] { ProcessGrid(2, {}, ""); }, "'' is no axis");
    const Degrees folded{.tensor = 2, .pipeline = 2, .expert = 2, .expert_tensor = 1};
    expect_error([&] { ProcessGrid(8, folded, "tp-pp-ep-dp"); }, "put pp last");
    EXPECT_EQ(ProcessGrid(8, folded).group("ep", 0), (std::vector<int>{0, 1}));
    const ProcessGrid grid(8, {.tensor = 2});
    expect_error([&] { grid.group("tp-tp", 0); }, "no different axes of one view");
    expect_error([&] { grid.group("tp-ep", 0); }, "no different axes of one view");
    expect_error([&] { grid.groups("rank"); }, "'rank' is no axis");
    expect_error([&] { grid.group("tp", 8); }, "rank must be 0 to 7, got 8");
    expect_error([&] { grid.pipeline_group({1}, 0); },
                 "place in the pipeline must be 0 to 0, got 1");
}

}  // namespace
