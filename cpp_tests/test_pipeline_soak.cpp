// A share of the random plans that megacore_schedule_soak makes.
#include <gtest/gtest.h>

#include "schedule_soak.h"

namespace megacore::testing {
namespace {

TEST(ScheduleSoak, RandomPlansAreValid) {
    const SoakReport report = soak_schedules(20'000, 1);
    EXPECT_EQ(report.failure, "");
    EXPECT_EQ(report.plans, 20'000);
}

TEST(ScheduleSoak, PlansDependOnTheirSeedAlone) {
    // The second plan of seed 5 is the first of seed 6.
    const auto steps = [](int plans, std::uint64_t seed) {
        return soak_schedules(plans, seed).steps;
    };
    EXPECT_EQ(steps(2, 5), steps(1, 5) + steps(1, 6));
    EXPECT_NE(steps(20, 5), steps(20, 500));
}

}  // namespace
}  // namespace megacore::testing
