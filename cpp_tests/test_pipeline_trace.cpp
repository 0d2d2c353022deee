// Trace files: slices, threads and arrows. That they are JSON is tested from Python.
#include <gtest/gtest.h>

#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

#include "core/check.h"
#include "pipeline/text.h"
#include "pipeline/trace.h"

namespace megacore::pipeline {
namespace {

std::string trace_of(const Schedule& schedule, const std::vector<TraceSource>& sources) {
    std::ostringstream out;
    write_trace(out, schedule.placement, sources);
    return out.str();
}

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t found = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++found;
    return found;
}

TEST(Trace, SlicesAndArrows) {
    const Schedule schedule = parse_csv(
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0\n1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1\n", "x");
    Costs costs;
    costs.transfer_us = 0.5;
    const Simulation result = simulate(schedule, costs);
    const std::string text = trace_of(schedule, {{"simulated", &result.timeline}});
    EXPECT_EQ(count(text, "\"ph\":\"X\""), 12U);
    EXPECT_EQ(count(text, "\"tid\":0,\"ts\""), 6U + 6U);  // six steps, two ends of three arrows
    EXPECT_EQ(count(text, "\"ph\":\"s\""), 3U);
    EXPECT_EQ(count(text, "\"ph\":\"t\""), 6U);
    EXPECT_EQ(count(text, "\"ph\":\"f\""), 3U);
    EXPECT_NE(
        text.find("{\"ph\":\"X\",\"pid\":1,\"tid\":0,\"ts\":1.500,\"dur\":1.000,\"name\":\"1F0\""),
        std::string::npos)
        << text;
    EXPECT_NE(text.find("\"name\":\"simulated rank 1\""), std::string::npos);
}

TEST(Trace, ArrowsWithoutTransfers) {
    const Schedule schedule = parse_csv("0F0,3F0\n1F0,2F0\n", "v");
    const Simulation result = simulate(schedule, {});
    const std::string text = trace_of(schedule, {{"plan", &result.timeline}});
    EXPECT_EQ(count(text, "\"ph\":\"s\""), 2U);  // 0 to 1 and 2 to 3; 1 and 2 are on one rank
    EXPECT_EQ(count(text, "\"ph\":\"f\""), 2U);
}

TEST(Trace, OverlappingTransfersGetThreadsOfTheirOwn) {
    const Schedule schedule = parse_csv("0REDUCE_GRAD0,0REDUCE_GRAD1,0REDUCE_GRAD2,0F0\n", "x");
    const Timeline timeline{{{schedule.ranks[0][0], 0.0, 5.0},
                             {schedule.ranks[0][1], 1.0, 3.0},
                             {schedule.ranks[0][2], 3.0, 4.0},
                             {schedule.ranks[0][3], 0.0, 2.0}}};
    const std::string text = trace_of(schedule, {{"x", &timeline}});
    EXPECT_EQ(count(text, "\"tid\":1,\"ts\""), 1U);
    EXPECT_EQ(count(text, "\"tid\":2,\"ts\""), 2U);
    EXPECT_NE(text.find("\"bucket\":2"), std::string::npos);
}

TEST(Trace, SourcesLieSideBySideAndBeginAtZero) {
    const Schedule schedule = parse_csv("0F0\n1F0\n", "x");
    const Simulation result = simulate(schedule, {});
    const Timeline run{{{schedule.ranks[0][0], 7e9, 7e9 + 1.25}},
                       {{schedule.ranks[1][0], 7e9 + 2.0, 7e9 + 3.0}}};
    const std::string text =
        trace_of(schedule, {{"simulated", &result.timeline}, {"a \"run\"\n", &run}});
    EXPECT_NE(
        text.find("{\"ph\":\"X\",\"pid\":1,\"tid\":0,\"ts\":0.000,\"dur\":1.250,\"name\":\"0F0\""),
        std::string::npos);
    EXPECT_NE(
        text.find("{\"ph\":\"X\",\"pid\":3,\"tid\":0,\"ts\":2.000,\"dur\":1.000,\"name\":\"1F0\""),
        std::string::npos);
    EXPECT_NE(text.find("\"a \\\"run\\\"\\u000a rank 0\""), std::string::npos);
    const Timeline foreign{{{{5, Kind::kForward, 0}, 0.0, 1.0}}};
    EXPECT_THROW(trace_of(schedule, {{"x", &foreign}}), Error);
}

}  // namespace
}  // namespace megacore::pipeline
