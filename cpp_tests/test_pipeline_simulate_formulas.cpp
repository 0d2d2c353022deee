// Simulated idle times against the closed forms of the papers.
//
// F, I, W are the times of one microbatch on a rank's share of the model (1 / P of the layers),
// B = I + W; idle is the simulated time less the M (F + B) of work that every rank has.
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/schedules.h"
#include "pipeline/simulate.h"

namespace megacore::pipeline {
namespace {

struct Times {
    double f;
    double i;
    double w;
};

void PrintTo(const Times& times, std::ostream* out) {
    *out << "F " << times.f << " I " << times.i << " W " << times.w;
}

struct Idle {
    double makespan;  // of a step that ends with a wait for all ranks
    double span;      // of steps that follow each other
};

struct Made {
    Schedule schedule;
    Costs costs;
};

Made make(const std::string& name, ScheduleOptions options, const Times& times) {
    Costs share;
    share.forward_us = {times.f};
    share.input_grad_us = {times.i};
    share.weight_grad_us = {times.w};
    const Costs costs = share_costs(make_schedule(name, options).placement, share);
    options.costs = costs;
    return {make_schedule(name, options), costs};
}

Idle idle_of(const std::string& name, const ScheduleOptions& options, const Times& times) {
    const Made made = make(name, options, times);
    const Simulation result = simulate(made.schedule, made.costs);
    const double work = options.num_microbatches * (times.f + times.i + times.w);
    for (const RankUse& rank : result.ranks) EXPECT_NEAR(rank.busy_us, work, 1e-9 * work);
    return {result.makespan_us - work, result.span_us - work};
}

/// Within 1% of the step, and of nothing looser: the formulas hold to rounding.
void expect_idle(double found, double expected, const Times& times, const std::string& what) {
    EXPECT_NEAR(found, expected, 1e-9 * (times.f + times.i + times.w) * (1.0 + expected)) << what;
}

const std::vector<Times> kTimes{{1, 1, 1}, {10, 13, 9}, {3, 2, 1}, {7, 11, 6}};

template <class Check>
void sweep(int step, int least_factor, const Check& check) {
    for (const int ranks : {2, 3, 4, 5, 8, 13, 16}) {
        if (ranks % step != 0) continue;
        for (const int microbatches :
             {least_factor * ranks, least_factor * ranks + 1, 3 * ranks + 2, 64}) {
            if (microbatches < least_factor * ranks || microbatches % step != 0) continue;
            ScheduleOptions options;
            options.num_ranks = ranks;
            options.num_microbatches = microbatches;
            for (const Times& times : kTimes) {
                check(options,
                      times,
                      "P " + std::to_string(ranks) + " M " + std::to_string(microbatches) + " " +
                          testing::PrintToString(times));
            }
        }
    }
}

TEST(Formulas, GPipeAndOneForwardOneBackward) {
    sweep(1, 1, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        const double expected = (options.num_ranks - 1) * (times.f + times.i + times.w);
        expect_idle(idle_of("gpipe", options, times).makespan, expected, times, what);
        expect_idle(idle_of("1f1b", options, times).makespan, expected, times, what);
    });
}

TEST(Formulas, Interleaved) {
    for (const int chunks : {1, 2, 3, 4}) {
        sweep(1, 1, [&](ScheduleOptions options, const Times& times, const std::string& what) {
            if (options.num_microbatches % options.num_ranks != 0) return;
            options.num_chunks = chunks;
            const double expected =
                (options.num_ranks - 1) * (times.f + times.i + times.w) / chunks;
            expect_idle(idle_of("interleaved", options, times).makespan, expected, times, what);
        });
    }
}

TEST(Formulas, ZeroBubbleH1) {
    // Where W fits into the gap between two I: W at most F and I.
    sweep(1, 1, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        const double expected = (options.num_ranks - 1) * (times.f + times.i - times.w);
        expect_idle(idle_of("zb-h1", options, times).makespan, expected, times, what);
    });
}

TEST(Formulas, ZeroBubbleH2) {
    sweep(1, 2, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        const double expected =
            std::max(0.0, (options.num_ranks - 1) * (times.f + times.i - 2 * times.w));
        expect_idle(idle_of("zb-h2", options, times).span, expected, times, what);
    });
}

TEST(Formulas, ZeroBubbleV) {
    sweep(1, 2, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        if (times.f != times.i || times.i != times.w) return;
        const Idle idle = idle_of("zb-v", options, times);
        expect_idle(idle.span, 0.0, times, what);
        expect_idle(idle.makespan, (options.num_ranks - 1) * times.f / 2, times, what);
    });
}

TEST(Formulas, VHalfAndVMin) {
    // Given as about a half and two thirds of that of 1F1B.
    sweep(1, 2, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        if (times.f != times.i || times.i != times.w) return;
        const double one_f_one_b = (options.num_ranks - 1) * (times.f + times.i + times.w);
        EXPECT_LE(idle_of("v-half", options, times).makespan, one_f_one_b / 2 + 1e-9) << what;
        EXPECT_LE(idle_of("v-min", options, times).makespan, one_f_one_b * 2 / 3 + times.f / 2)
            << what;
    });
}

/// Idle time with each pair F&B as one step, as in the report; it takes F + B here.
double idle_with_pairs(const std::string& name,
                       const ScheduleOptions& options,
                       const Times& times) {
    Made made = make(name, options, times);
    made.costs.pair_us = {made.costs.forward_us[0] + made.costs.input_grad_us[0] +
                          made.costs.weight_grad_us[0]};
    const Simulation result = simulate(made.schedule, made.costs);
    return result.makespan_us - result.ranks[0].busy_us;
}

TEST(Formulas, DualPipe) {
    // The report's formula is for a forward that is no longer than an input gradient.
    sweep(2, 2, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        if (times.f > times.i) return;
        const double backward = times.i + times.w;
        const double pair = times.f + backward;
        expect_idle(idle_with_pairs("dualpipe", options, times),
                    (options.num_ranks / 2 - 1) * (pair + backward - 3 * times.w),
                    times,
                    what);
    });
}

TEST(Formulas, DualPipeV) {
    // The same over the 2 P stages of half a share each.
    sweep(1, 2, [](const ScheduleOptions& options, const Times& times, const std::string& what) {
        if (times.f > times.i) return;
        const double backward = times.i + times.w;
        const double pair = times.f + backward;
        expect_idle(idle_with_pairs("dualpipev", options, times),
                    (options.num_ranks - 1) * (pair + backward - 3 * times.w) / 2,
                    times,
                    what);
    });
}

}  // namespace
}  // namespace megacore::pipeline
