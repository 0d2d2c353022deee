// Transfers: what add_communication inserts, and where.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pipeline/communication.h"
#include "pipeline/schedules.h"
#include "pipeline/validate.h"
#include "schedule_support.h"
#include "support.h"

namespace megacore::pipeline {
namespace {

using testing::by_hand;
using testing::expect_error;
using testing::text_of;

Schedule make(const std::string& name, int ranks, int microbatches) {
    ScheduleOptions options;
    options.num_ranks = ranks;
    options.num_microbatches = microbatches;
    return make_schedule(name, options);
}

Schedule two_stages() {
    return by_hand(plain_placement(2, 2), {"0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"});
}

TEST(Communication, TwoStagesByHand) {
    const Schedule plain = add_communication(two_stages(), 0);
    EXPECT_EQ(text_of(plain.ranks[0]), "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1");
    EXPECT_EQ(text_of(plain.ranks[1]), "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1");
    const Schedule early = add_communication(two_stages(), 1);
    EXPECT_EQ(text_of(early.ranks[0]), "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0B0 0B1");
    EXPECT_EQ(text_of(early.ranks[1]), "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1B1 1SEND_B1");
    const Schedule all = add_communication(two_stages(), 100);
    EXPECT_EQ(text_of(all.ranks[0]), "0RECV_B0 0RECV_B1 0F0 0SEND_F0 0F1 0SEND_F1 0B0 0B1");
}

TEST(Communication, KeepsBucketsAndReplacesTransfers) {
    Schedule schedule = two_stages();
    schedule.ranks[0] =
        testing::steps_of("0GATHER_PARAM0 0F0 0SEND_F0 0F1 0B0 0B1 0REDUCE_GRAD1 0REDUCE_GRAD0");
    const Schedule out = add_communication(schedule, 0);
    EXPECT_EQ(text_of(out.ranks[0]),
              "0GATHER_PARAM0 0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1 0REDUCE_GRAD1 "
              "0REDUCE_GRAD0");
    EXPECT_EQ(add_communication(out, 0).ranks, out.ranks);
}

TEST(Communication, NothingBetweenStagesOfOneRank) {
    const Schedule schedule = add_communication(make("zb-v", 2, 3));
    // Stages 1 and 2 share rank 1, stages 0 and 3 are the ends.
    for (const auto& steps : schedule.ranks) {
        for (const Action& step : steps) {
            EXPECT_NE(step, (Action{1, Kind::kSendForward, step.number}));
            EXPECT_NE(step, (Action{2, Kind::kRecvForward, step.number}));
            EXPECT_NE(step, (Action{2, Kind::kSendBackward, step.number}));
            EXPECT_NE(step, (Action{1, Kind::kRecvBackward, step.number}));
        }
    }
    const std::string alone = text_of(add_communication(make("interleaved", 1, 4)).ranks[0]);
    EXPECT_EQ(alone.find("SEND"), std::string::npos);
}

/// Sends follow what they send, but for receives, which come before what needs them, and of each
/// pair of ranks both ends have the same order; found without the core's own check.
void expect_transfers(const Schedule& compute, const Schedule& schedule) {
    using Tensors = std::vector<std::tuple<int, bool, int>>;  // to stage, forward, microbatch
    std::map<std::pair<int, int>, Tensors> sent;
    std::map<std::pair<int, int>, Tensors> received;
    const Placement& at = schedule.placement;
    for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
        const int here = static_cast<int>(rank);
        std::vector<Action> rest;
        for (std::size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
            const Action step = schedule.ranks[rank][i];
            if (step.kind == Kind::kSendForward || step.kind == Kind::kSendBackward) {
                const bool forward = step.kind == Kind::kSendForward;
                std::size_t maker = i - 1;
                while (!is_compute(schedule.ranks[rank][maker].kind)) --maker;
                const Action made = schedule.ranks[rank][maker];
                EXPECT_EQ(made.stage, step.stage);
                EXPECT_EQ(made.number, step.number);
                EXPECT_EQ(made.kind == Kind::kForward, forward);
                const int to = step.stage + (forward ? 1 : -1);
                sent[{here, at.rank_of(to)}].push_back({to, forward, step.number});
            } else if (step.kind == Kind::kRecvForward || step.kind == Kind::kRecvBackward) {
                const bool forward = step.kind == Kind::kRecvForward;
                const int from = step.stage + (forward ? -1 : 1);
                received[{at.rank_of(from), here}].push_back({step.stage, forward, step.number});
                for (std::size_t j = 0; j < i; ++j) {
                    const Action before = schedule.ranks[rank][j];
                    const bool needed = before.stage == step.stage &&
                                        before.number == step.number && is_compute(before.kind) &&
                                        (before.kind == Kind::kForward) == forward;
                    EXPECT_FALSE(needed) << to_string(step) << " comes late";
                }
            } else {
                rest.push_back(step);
            }
        }
        EXPECT_EQ(rest, compute.ranks[rank]);
    }
    EXPECT_EQ(sent, received);
}

TEST(Communication, EveryScheduleAndPrefetch) {
    for (const std::string& name : schedule_names()) {
        for (const auto& [ranks, microbatches] :
             {std::pair{2, 5}, {3, 3}, {4, 9}, {5, 12}, {6, 8}, {7, 20}}) {
            if (name == "dualpipe" && ranks % 2 != 0) continue;
            const Schedule compute = make(name, ranks, microbatches);
            for (const int prefetch : {0, 1, 2, 50}) {
                SCOPED_TRACE(name + ", " + std::to_string(ranks) + " ranks, prefetch " +
                             std::to_string(prefetch));
                const Schedule schedule = add_communication(compute, prefetch);
                expect_transfers(compute, schedule);
                EXPECT_NO_THROW(validate(schedule));
            }
        }
    }
}

TEST(Communication, RanksThatSendToEachOtherPostReceivesFirst) {
    // Both ranks send before either receives the second tensor: with one tensor on the way at a
    // time they would wait for each other.
    const Schedule schedule =
        by_hand(mirrored_placement(2, 4),
                {"0F0 0F1 3F2 3B2 3F3 3B3 0B0 0B1", "2F2 2F3 1F0 1B0 1F1 1B1 2B2 2B3"});
    const Schedule out = add_communication(schedule, 0);
    EXPECT_NO_THROW(validate(out));
    EXPECT_EQ(text_of(out.ranks[1]).substr(0, 38), "2F2 2SEND_F2 2F3 1RECV_F0 2SEND_F3 1F0");
}

TEST(Communication, Refusals) {
    expect_error([] { add_communication(two_stages(), -1); }, "at least 0 steps ahead, found -1");
    Schedule schedule = two_stages();
    schedule.ranks.pop_back();
    expect_error([&] { add_communication(schedule); }, "expected steps for 2 ranks, found 1");
    schedule = two_stages();
    schedule.ranks[1].push_back({1, Kind::kForward, 2});
    expect_error([&] { add_communication(schedule); }, "rank 1 has no such stage or microbatch");
    schedule.ranks[1].back() = {0, Kind::kForward, 1};
    expect_error([&] { add_communication(schedule); }, "its step 0F1");
}

TEST(Communication, LeavesDeadlocksOfTheComputeStepsToValidate) {
    const Schedule schedule =
        by_hand(plain_placement(2, 2), {"0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"});
    expect_error([&] { validate(add_communication(schedule)); }, "deadlock");
}

}  // namespace
}  // namespace megacore::pipeline
