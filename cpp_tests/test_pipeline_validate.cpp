// Broken schedules: each kind of mistake has its own message, which shows the step.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/check.h"
#include "pipeline/communication.h"
#include "pipeline/schedules.h"
#include "pipeline/validate.h"
#include "schedule_support.h"
#include "support.h"

namespace megacore::pipeline {
namespace {

using testing::by_hand;
using testing::expect_error;

void expect_broken(const std::vector<std::string>& ranks, const std::string& text) {
    const Schedule schedule = by_hand(plain_placement(2, 2), ranks);
    expect_error([&] { validate(schedule); }, text);
}

const std::string kFirst = "0F0 0F1 0B0 0B1";
const std::string kSecond = "1F0 1B0 1F1 1B1";
const std::string kFirstSends = "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1";
const std::string kSecondSends = "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1";

TEST(Validate, AcceptsWhatIsRight) {
    EXPECT_EQ(validate(by_hand(plain_placement(2, 2), {kFirst, kSecond})),
              (std::vector<double>{2, 1}));
    EXPECT_EQ(validate(by_hand(plain_placement(2, 2), {kFirstSends, kSecondSends})),
              (std::vector<double>{2, 1}));
}

TEST(Validate, WrongSteps) {
    expect_broken({"0F0 0B0 0F1 0B1 2F0", kSecond}, "step 4 (2F0): there is no stage 2");
    expect_broken({"0F0 0B0 0F1 0B1 1F0", kSecond}, "rank 0, step 4 (1F0): stage 1 is on rank 1");
    expect_broken({"0F0 0F2 0B0 0B2", kSecond}, "(0F2): there is no microbatch 2");
    expect_broken({"0F0 0F1 0F0 0B0 0B1", kSecond}, "step 2 (0F0): this step is there twice");
    expect_broken({"0F0 0B1 0F1 0B0", kSecond}, "(0B1): its forward does not come before it");
    expect_broken({"0F0 0F1 0W0 0I0 0B1", kSecond}, "(0W0): its I does not come before it");
    expect_broken({"0F0 0F1 0B0 0W0 0B1", kSecond}, "(0W0): B has done the work of W");
    expect_broken({"0F0 0F1 0B0 0I0 0B1", kSecond}, "(0I0): it was backwarded already");
    expect_broken({"0F0 0F1 0I0 0B0 0B1", kSecond}, "(0B0): it was backwarded already");
    expect_broken({"0F0 0B0 0B1", kSecond}, "(0B1): its forward");
    expect_broken({"0F0 0F1 0B0", kSecond}, "step 3 (the end): 0B1 is missing");
    expect_broken({"0F1 0B1", kSecond}, "0F0 is missing");
    expect_broken({"0F0 0F1 0B0 0I1", kSecond}, "0W1 is missing");
}

TEST(Validate, WrongTransfers) {
    const auto broken = [](const std::string& first,
                           const std::string& second,
                           const std::string& text) { expect_broken({first, second}, text); };
    broken("0F0 0SEND_F0 0F1 0RECV_B0 0B0 0RECV_B1 0B1", kSecondSends, "0SEND_F1 is missing");
    broken("0SEND_F0 0F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1",
           kSecondSends,
           "step 0 (0SEND_F0): what it sends is not computed before it");
    broken("0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0B1 0RECV_B1",
           kSecondSends,
           "(0B1): its 0RECV_B1 does not come before it");
    broken(kFirstSends + " 0SEND_B0",
           kSecondSends,
           "stage 0 is the first of its chain and has no such neighbour");
    broken(kFirstSends, kSecondSends + " 1SEND_F0", "stage 1 is the last of its chain");
    broken(kFirstSends + " 0SEND_F1", kSecondSends, "this step is there twice");
    broken(
        "0F0 0F1 0SEND_F1 0SEND_F0 0RECV_B0 0B0 0RECV_B1 0B1",
        kSecondSends,
        "step 0 (1RECV_F0): the receives from rank 0 are not in the order of its sends; expected "
        "1RECV_F1 here, for rank 0, step 2 (0SEND_F1)");
    expect_error([] { validate(by_hand(v_placement(1, 1), {"0F0 0SEND_F0 1F0 1B0 0B0"})); },
                 "stage 1 is on the same rank");
}

TEST(Validate, WrongBuckets) {
    const std::string good = "0GATHER_PARAM0 0GATHER_PARAM1 0F0 0F1 0B0 0I1 0W1 0REDUCE_GRAD0";
    EXPECT_NO_THROW(validate(by_hand(plain_placement(2, 2), {good, kSecond})));
    expect_broken({"0F0 0GATHER_PARAM0 0F1 0B0 0B1", kSecond},
                  "stage 0 has used these parameters before");
    expect_broken({"0F0 0F1 0B0 0I1 0REDUCE_GRAD0 0W1", kSecond},
                  "the gradients of stage 0 are not complete, 1 microbatches are missing");
    expect_broken({kFirst + " 0REDUCE_GRAD0 0REDUCE_GRAD0", kSecond}, "this step is there twice");
    expect_broken({kFirst + " 1REDUCE_GRAD0", kSecond}, "stage 1 is on rank 1");
}

TEST(Validate, Deadlocks) {
    expect_broken({"0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"},
                  "deadlock at rank 0, step 1 (0B0), the ranks wait for each other:\n"
                  "  rank 0, step 1 (0B0) waits for rank 1, step 2 (1B0)\n"
                  "  rank 1, step 1 (1F1) waits for rank 0, step 2 (0F1)\n");
    // A rank that waits for itself: the second chunk before the first.
    expect_error([] { validate(by_hand(v_placement(1, 1), {"1F0 0F0 1B0 0B0"})); },
                 "rank 0, step 0 (1F0) waits for rank 0, step 1 (0F0)");
    // Right order, but both ranks fill the way to each other before they receive.
    const Schedule crossed = by_hand(
        mirrored_placement(2, 4),
        {"0F0 0SEND_F0 0F1 0SEND_F1 3RECV_F2 3F2 3B2 3SEND_B2 3RECV_F3 3F3 3B3 3SEND_B3 0RECV_B0 "
         "0B0 0RECV_B1 0B1",
         "2F2 2SEND_F2 2F3 2SEND_F3 1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 2RECV_B2 "
         "2B2 2RECV_B3 2B3"});
    expect_error([&] { validate(crossed); },
                 "rank 0, step 3 (0SEND_F1) waits for rank 1, step 4 (1RECV_F0)\n"
                 "  rank 1, step 3 (2SEND_F3) waits for rank 0, step 4 (3RECV_F2)\n");
}

TEST(Validate, TheGridShowsTheStep) {
    const Schedule schedule = by_hand(plain_placement(2, 2), {kFirst, "1F0 1F1 1B0 1B0"});
    expect_error([&] { validate(schedule); },
                 "schedule by-hand: rank 1, step 3 (1B0): this step is there twice\n"
                 "step      0   1   2   3     4 \n"
                 "rank 0    0F0 0F1 0B0 0B1     \n"
                 "rank 1    1F0 1F1 1B0 [1B0]   ");
    ScheduleOptions options;
    options.num_ranks = 64;
    options.num_microbatches = 100;
    Schedule large = make_schedule("1f1b", options);
    large.ranks[40].erase(large.ranks[40].begin() + 150);
    expect_error([&] { validate(large); }, "(part of 64 ranks and 200 steps)");
}

TEST(Validate, Memory) {
    ScheduleOptions options;
    options.num_ranks = 4;
    options.num_microbatches = 12;
    const Schedule plain = make_schedule("1f1b", options);
    EXPECT_EQ(validate(plain), (std::vector<double>{4, 3, 2, 1}));
    EXPECT_NO_THROW(validate(plain, {.max_live = {4, 3, 2, 1}}));
    expect_error(
        [&] { validate(plain, {.max_live = {4, 2.5, 2, 1}}); },
        "rank 1, step 2 (1F2): rank 1 would hold 3 units of activations, its limit is 2.5");
    EXPECT_EQ(validate(plain, {.activation_size = {1, 2, 3, 10}}),
              (std::vector<double>{4, 6, 6, 10}));
    const Schedule split = make_schedule("zb-h1", options);
    EXPECT_EQ(validate(split), (std::vector<double>{4, 4, 4, 4}));
    // Where I frees everything, only the order of F and I counts.
    EXPECT_EQ(validate(split, {.freed_by_input_grad = 1.0}), (std::vector<double>{4, 3, 2, 1}));
    const std::vector<double> half = validate(split, {.freed_by_input_grad = 0.5});
    for (std::size_t rank = 0; rank < 4; ++rank) {
        EXPECT_GE(half[rank], 4.0 - static_cast<double>(rank));
        EXPECT_LE(half[rank], 4.0);
    }
    expect_error([&] { validate(plain, {.max_live = {1, 2}}); }, "one per rank (4), found 2");
    expect_error([&] { validate(plain, {.activation_size = {-1}}); }, "at least 0, found -1");
    expect_error([&] { validate(plain, {.freed_by_input_grad = 1.5}); }, "between 0 and 1");
}

TEST(Validate, WrongPlacements) {
    Schedule schedule = by_hand(plain_placement(2, 2), {kFirst, kSecond});
    schedule.placement.chains = {{0, 2}};
    expect_error([&] { validate(schedule); }, "stage 1 is on rank 2");
    schedule.placement = plain_placement(2, 2);
    schedule.placement.microbatches = {{1, 2}};
    expect_error([&] { validate(schedule); }, "chain 0 to begin with microbatch 0, found 1");
    schedule.placement = plain_placement(3, 2);
    expect_error([&] { validate(schedule); }, "expected steps for 3 ranks, found 2");
}

TEST(Validate, AnyDroppedDoubledOrMovedStepIsFound) {
    std::mt19937 random(7);
    int broken = 0;
    for (const std::string& name : schedule_names()) {
        ScheduleOptions options;
        options.num_ranks = 4;
        options.num_microbatches = 9;
        const Schedule schedule = add_communication(make_schedule(name, options));
        for (int i = 0; i < 60; ++i) {
            Schedule wrong = schedule;
            auto& steps = wrong.ranks[random() % 4];
            const auto place = static_cast<std::ptrdiff_t>(random() % steps.size());
            const Action step = steps[static_cast<std::size_t>(place)];
            if (i % 3 == 0) {
                steps.erase(steps.begin() + place);
            } else if (i % 3 == 1) {
                steps.insert(steps.begin() + static_cast<std::ptrdiff_t>(random() % steps.size()),
                             step);
            } else if (step.kind == Kind::kForward) {
                // To the end: after its backward.
                std::rotate(steps.begin() + place, steps.begin() + place + 1, steps.end());
            } else {
                continue;
            }
            ++broken;
            EXPECT_THROW(validate(wrong), Error) << name << " " << to_string(step);
        }
    }
    EXPECT_GT(broken, 400);
}

}  // namespace
}  // namespace megacore::pipeline
