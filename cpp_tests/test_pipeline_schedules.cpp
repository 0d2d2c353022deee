// The generators: orders drawn in the papers, completeness for any sizes, memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/check.h"
#include "pipeline/schedules.h"
#include "schedule_support.h"
#include "support.h"

namespace megacore::pipeline {
namespace {

using testing::by_hand;
using testing::expect_complete;
using testing::expect_error;
using testing::live_activations;
using testing::text_of;

Schedule make(const std::string& name, int ranks, int microbatches, int chunks = 0) {
    ScheduleOptions options;
    options.num_ranks = ranks;
    options.num_microbatches = microbatches;
    options.num_chunks = chunks;
    return make_schedule(name, options);
}

int peak(const Schedule& schedule) {
    const std::vector<int> live = live_activations(schedule);
    return *std::max_element(live.begin(), live.end());
}

std::vector<int> microbatch_counts(int ranks) {
    return {1, 2, 3, ranks, ranks + 1, 2 * ranks - 1, 2 * ranks, 2 * ranks + 3, 4 * ranks, 29};
}

constexpr int kRankCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 11};

bool refused(const std::string& name, int ranks, int microbatches) {
    return name == "dualpipe" && (ranks % 2 != 0 || microbatches < 2);
}

TEST(Schedules, OrdersOfThePapers) {
    // Narayanan et al. 2021, figures 3 and 4, Qi et al. 2023, figures 2 and 3: four ranks, eight
    // microbatches.
    EXPECT_EQ(text_of(make("gpipe", 2, 3).ranks[0]), "0F0 0F1 0F2 0B0 0B1 0B2");
    EXPECT_EQ(text_of(make("1f1b", 4, 8).ranks[1]),
              "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1F6 1B4 1F7 1B5 1B6 1B7");
    EXPECT_EQ(text_of(make("1f1b", 4, 8).ranks[3]),
              "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5 3F6 3B6 3F7 3B7");
    EXPECT_EQ(text_of(make("interleaved", 4, 8).ranks[0]),
              "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 0F6 4B0 0F7 4B1 4F4 4B2 4F5 4B3 4F6 0B0 "
              "4F7 0B1 0B2 0B3 4B4 4B5 4B6 4B7 0B4 0B5 0B6 0B7");
    EXPECT_EQ(text_of(make("zb-h1", 4, 8).ranks[0]),
              "0F0 0F1 0F2 0F3 0I0 0W0 0F4 0I1 0W1 0F5 0I2 0W2 0F6 0I3 0W3 0F7 0I4 0W4 0I5 0W5 "
              "0I6 0W6 0I7 0W7");
    EXPECT_EQ(text_of(make("zb-h2", 4, 8).ranks[3]),
              "3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3F4 3I4 3F5 3I5 3F6 3I6 3W0 3F7 3I7 3W1 3W2 3W3 "
              "3W4 3W5 3W6 3W7");
    // DeepSeek-V3, figure 5: device 3 of 8, whose stages are 3 and 12, with 20 microbatches.
    const std::string dualpipe = text_of(make("dualpipe", 8, 20).ranks[3]);
    EXPECT_EQ(dualpipe.substr(0, 60),
              "3F0 12F10 3F1 12F11 3F2 12F12 3F3 12F13 3F4 12B10 12F14 3B0 ");
}

TEST(Schedules, CompleteForAnySizes) {
    for (const std::string& name : schedule_names()) {
        for (const int ranks : kRankCounts) {
            for (const int microbatches : microbatch_counts(ranks)) {
                if (refused(name, ranks, microbatches)) continue;
                const Schedule schedule = make(name, ranks, microbatches);
                SCOPED_TRACE(name + ", " + std::to_string(ranks) + " ranks, " +
                             std::to_string(microbatches) + " microbatches");
                EXPECT_EQ(schedule.name, name);
                EXPECT_EQ(schedule.placement.num_ranks, ranks);
                EXPECT_EQ(schedule.placement.num_microbatches(), microbatches);
                expect_complete(schedule);
            }
        }
    }
}

TEST(Schedules, InterleavedForAnyChunksAndGroups) {
    for (const int ranks : {1, 2, 3, 5, 8}) {
        for (const int chunks : {1, 2, 3, 7}) {
            for (const int microbatches : microbatch_counts(ranks)) {
                for (const int group : {0, ranks, ranks + 1, 3 * ranks}) {
                    ScheduleOptions options;
                    options.num_ranks = ranks;
                    options.num_microbatches = microbatches;
                    options.num_chunks = chunks;
                    options.microbatch_group_size = group;
                    SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(chunks) +
                                 " chunks, " + std::to_string(microbatches) +
                                 " microbatches in groups of " + std::to_string(group));
                    const Schedule schedule = make_schedule("interleaved", options);
                    EXPECT_EQ(schedule.placement.num_stages(), ranks * chunks);
                    expect_complete(schedule);
                    if (microbatches % ranks != 0 || group != 0) continue;
                    // The memory of Megatron-LM's warm-up, one more than its forwards.
                    const int warm_up =
                        chunks == 1 ? ranks - 1 : 2 * (ranks - 1) + (chunks - 1) * ranks;
                    EXPECT_EQ(peak(schedule), std::min(warm_up + 1, chunks * microbatches));
                }
            }
        }
    }
    EXPECT_EQ(make("interleaved", 4, 6, 1).ranks, make("1f1b", 4, 6).ranks);
}

TEST(Schedules, MemoryOfThePapers) {
    for (const int ranks : kRankCounts) {
        for (const int microbatches : microbatch_counts(ranks)) {
            SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(microbatches));
            EXPECT_EQ(peak(make("gpipe", ranks, microbatches)), microbatches);
            const std::vector<int> live = live_activations(make("1f1b", ranks, microbatches));
            for (int rank = 0; rank < ranks; ++rank) {
                EXPECT_EQ(live[static_cast<std::size_t>(rank)],
                          std::min(ranks - rank, microbatches));
            }
            EXPECT_EQ(peak(make("zb-h1", ranks, microbatches)), std::min(ranks, microbatches));
            EXPECT_EQ(peak(make("zb-h2", ranks, microbatches)),
                      std::min(2 * ranks - 1, microbatches));
            // Two chunks per rank from here on.
            EXPECT_EQ(peak(make("zb-v", ranks, microbatches)), 2 * std::min(ranks, microbatches));
            EXPECT_LE(peak(make("v-half", ranks, microbatches)), 2 * ((ranks + 2) / 2));
            EXPECT_LE(peak(make("v-min", ranks, microbatches)), 2 * ((ranks + 4) / 3));
            EXPECT_LE(peak(make("dualpipev", ranks, microbatches)), 2 * ranks + 1);
            if (refused("dualpipe", ranks, microbatches)) continue;
            EXPECT_LE(peak(make("dualpipe", ranks, microbatches)), ranks + 1);
        }
    }
    EXPECT_EQ(peak(make("v-half", 16, 64)), 18);
    EXPECT_EQ(peak(make("v-min", 16, 64)), 12);
}

TEST(Schedules, CostsChangeWhereWeightGradientsGo) {
    ScheduleOptions options;
    options.num_ranks = 4;
    options.num_microbatches = 12;
    options.costs.forward_us = {10.0};
    options.costs.input_grad_us = {17.0};
    options.costs.weight_grad_us = {6.0};
    options.costs.transfer_us = 1.0;
    for (const char* name : {"zb-h1", "zb-h2", "zb-v", "v-half", "v-min"}) {
        SCOPED_TRACE(name);
        const Schedule adapted = make_schedule(name, options);
        const Schedule unit = make(name, 4, 12);
        expect_complete(adapted);
        EXPECT_NE(adapted.ranks, unit.ranks);
        EXPECT_LE(peak(adapted), peak(unit));
        EXPECT_LE(simulate(adapted, options.costs).span_us, simulate(unit, options.costs).span_us);
    }
}

TEST(Schedules, SamePlanEachTime) {
    for (const std::string& name : schedule_names()) {
        EXPECT_EQ(make(name, 6, 13).ranks, make(name, 6, 13).ranks) << name;
    }
}

TEST(Schedules, RefusalsSayWhy) {
    const auto refusal = [](const std::string& name,
                            int ranks,
                            int microbatches,
                            int chunks,
                            const std::string& text) {
        expect_error([&] { make(name, ranks, microbatches, chunks); }, text);
    };
    refusal("zb-h3", 4, 8, 0, "there is no schedule 'zb-h3'; expected one of gpipe, 1f1b, ");
    refusal("dualpipe", 5, 20, 0, "an even number of ranks, found 5");
    refusal("dualpipe", 4, 1, 0, "at least two microbatches, found 1");
    refusal("zb-v", 4, 8, 3, "zb-v: it has 2 model chunk(s) per rank, found 3");
    refusal("1f1b", 0, 8, 0, "found 0 ranks, 8 microbatches");
    refusal("1f1b", 4, -2, 0, "found 4 ranks, -2 microbatches");
    refusal("interleaved", 4, 8, -1, "-1 chunks");
    refusal("gpipe", 100000, 100000, 0, "steps are more than");
    ScheduleOptions options;
    options.num_ranks = 4;
    options.num_microbatches = 8;
    options.microbatch_group_size = 3;
    expect_error([&] { make_schedule("interleaved", options); },
                 "groups of 3 microbatches are too small for 4 ranks");
    expect_error([&] { make_schedule("1f1b", options); }, "is only used by interleaved");
    options.microbatch_group_size = 0;
    options.costs.weight_grad_us = {1.0, 2.0};
    expect_error([&] { make_schedule("zb-h1", options); }, "weight_grad_us");
}

TEST(Placement, WhereStagesLive) {
    const Placement v = v_placement(3, 4);
    EXPECT_EQ(v.chains, (std::vector<std::vector<int>>{{0, 1, 2, 2, 1, 0}}));
    EXPECT_EQ(v.stages_of(1), (std::vector<int>{1, 4}));
    EXPECT_EQ(interleaved_placement(3, 2, 4).rank_of(4), 1);
    const Placement mirrored = mirrored_placement(4, 5);
    EXPECT_EQ(mirrored.num_stages(), 8);
    EXPECT_EQ(mirrored.rank_of(5), 2);
    EXPECT_EQ(mirrored.chain_of(3), 0);
    EXPECT_TRUE(mirrored.is_last(3));
    EXPECT_TRUE(mirrored.is_first(4));
    EXPECT_FALSE(mirrored.is_first(5));
    EXPECT_EQ(mirrored.microbatches, (std::vector<std::pair<int, int>>{{0, 3}, {3, 2}}));
    expect_error([&] { mirrored.rank_of(8); }, "there is no stage 8: the pipeline has 8 stages");
    expect_error([&] { mirrored.chain_of(-1); }, "there is no stage -1");
    expect_error([] { plain_placement(0, 4); }, "at least one rank, found 0");
}

TEST(Actions, TextRoundTrip) {
    for (int kind = 0; kind < 10; ++kind) {
        const Action action{12, static_cast<Kind>(kind), 345};
        EXPECT_EQ(parse_action(to_string(action)), action);
    }
    EXPECT_EQ(to_string({1, Kind::kRecvForward, 0}), "1RECV_F0");
    for (const char* text : {"", "F", "0F", "F0", "0G1", "0F1x", " 0F1", "0F-1", "99999999999F1"}) {
        expect_error([&] { parse_action(text); }, std::string("'") + text + "' is no step");
    }
}

}  // namespace
}  // namespace megacore::pipeline
