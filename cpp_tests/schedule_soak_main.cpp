// megacore_schedule_soak [--plans N] [--seed S]: as many random plans as one likes.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "schedule_soak.h"

int main(int count, char** arguments) {
    std::int64_t plans = 1'000'000;
    std::uint64_t seed = 1;
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string name = arguments[i];
        if (name == "--plans") {
            plans = std::atoll(arguments[i + 1]);
        } else if (name == "--seed") {
            seed = std::strtoull(arguments[i + 1], nullptr, 10);
        } else {
            std::fprintf(
                stderr, "unknown option %s; --plans and --seed take a number\n", name.c_str());
            return 2;
        }
    }
    const auto begin = std::chrono::steady_clock::now();
    const megacore::testing::SoakReport report = megacore::testing::soak_schedules(plans, seed);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::printf("%lld plans of %lld steps in %.1f s\n%s\n",
                static_cast<long long>(report.plans),
                static_cast<long long>(report.steps),
                took.count(),
                report.failure.empty() ? "all valid, no deadlock" : report.failure.c_str());
    return report.failure.empty() ? 0 : 1;
}
