// Schedules as CSV: round trips, the forms that torch writes, messages.
#include <gtest/gtest.h>

#include <string>

#include "core/check.h"
#include "pipeline/text.h"

namespace megacore::pipeline {
namespace {

std::string error_of(const std::string& text) {
    try {
        parse_csv(text, "plans/own.csv");
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(ScheduleText, RoundTrip) {
    const std::string text =
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0REDUCE_GRAD0\n"
        "1RECV_F0,1F0,1I0,1SEND_B0,1W0,1F1,1GATHER_PARAM2\n";
    const Schedule schedule = parse_csv(text, "plans/own.csv");
    EXPECT_EQ(schedule.name, "own");
    EXPECT_EQ(schedule.ranks[1][2], (Action{1, Kind::kInputGrad, 0}));
    EXPECT_EQ(to_csv(schedule), text);
}

TEST(ScheduleText, FormsOfTorch) {
    // Idle cells, Windows line ends, quotes, spaces, overlapped pairs, no line end at the end.
    const Schedule schedule =
        parse_csv("0F0,,0F1,(0F2;3B0)OVERLAP_F_B,3F2\r\n\"1F0\", 2F0 ,,2F1,2F2,1F1,1F2", "x.csv");
    EXPECT_EQ(schedule.ranks[0].size(), 5U);
    EXPECT_EQ(schedule.ranks[0][2], (Action{0, Kind::kForward, 2}));
    EXPECT_EQ(schedule.ranks[0][3], (Action{3, Kind::kBackward, 0}));
    EXPECT_EQ(schedule.ranks[1][0], (Action{1, Kind::kForward, 0}));
}

TEST(ScheduleText, PlacementFollowsTheRows) {
    const Schedule v = parse_csv("0F0,3F0,0F1,3F1\n1F0,2F0,1F1,2F1\n\n", "v.csv");
    EXPECT_EQ(v.placement.num_ranks, 2);
    EXPECT_EQ(v.placement.chains, v_placement(2, 2).chains);
    EXPECT_EQ(v.placement.microbatches, v_placement(2, 2).microbatches);
    const Schedule two = parse_csv("0F0,3F2,0F1\n2F2,1F0,1F1\n", "two.csv");
    EXPECT_EQ(two.placement.chains, mirrored_placement(2, 3).chains);
    EXPECT_EQ(two.placement.microbatches, mirrored_placement(2, 3).microbatches);
}

TEST(ScheduleText, MessagesNameThePlace) {
    const auto expect = [](const std::string& text, const std::string& part) {
        EXPECT_NE(error_of(text).find(part), std::string::npos) << error_of(text);
        EXPECT_EQ(error_of(text).find("plans/own.csv"), 0U) << error_of(text);
    };
    expect("", "empty");
    expect("\n \n", "empty");
    expect(",,\n,\n", "empty");
    expect("0F0\n1F0,1X0\n", "row 2 (rank 1), column 2: expected a step");
    expect("0F0\n1F0,1X0\n", "found '1X0'");
    expect("0F0,0F\n", "found '0F'");
    expect("F0\n", "found 'F0'");
    expect("0F99999999999999999999\n", "found '0F99999999999999999999'");
    expect("0F0,20000000F0\n", "found '20000000F0'");
    expect("0F0,-1F0\n", "found '-1F0'");
    expect("(0F0;0B0\n", "OVERLAP_F_B, found '(0F0;0B0'");
    expect("(0F0;0B0)SOMETHING\n", "column 1: expected steps as in");
    expect("(0F0;zB0)OVERLAP_F_B\n", "found 'zB0'");
    expect("0F0,1F0\n0B0\n", "row 2 (rank 1), column 1: stage 0 of 0B0 is on rank 0 (column 1)");
    expect("0F0\n2F0\n", "stages 0 to 2, but none is 1");
    expect("0F0\n\n1F0\n", "row 2 (rank 1), column 1: the rank has no steps");
    expect("0F0,0F1\n1F0\n", "stage 1 takes microbatches 0 to 0; expected those");
    expect("0F1\n", "begins with 0");
    expect("0F0,1RECV_F0\n", "stage 1 computes nothing");
}

}  // namespace
}  // namespace megacore::pipeline
