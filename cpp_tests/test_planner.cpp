// The planner against closed forms, against itself without a search, and for what must be monotone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/check.h"
#include "planner/estimate.h"
#include "planner/plan_search.h"
#include "planner/step_model.h"

namespace megacore::planner {
namespace {

Hardware hardware() {
    Hardware h;
    h.gpus_per_node = 8;
    h.memory_bytes = 80e9;
    h.peak_flops = 300e12;
    h.matmul_efficiency = 0.8;
    h.matmul_half_k = 100.0;
    h.num_units = 108;
    h.memory_rate = 1.5e12;
    h.op_overhead_s = 3e-6;
    h.overlap_cost = 0.1;
    h.straggling = 0.003;
    h.inside = {300e9, 0.8, 5e-6};
    h.between = {25e9, 0.8, 8e-6};
    return h;
}

Model gpt() {
    Model m;
    m.layers = 12;
    m.hidden = 1536;
    m.ffn = 6144;
    m.heads = m.groups = 12;
    m.head_width = 128;
    m.vocab = 50257;
    m.seq_length = m.learned_positions = 1024;
    return m;
}

TEST(PlannerModel, CountsTheParametersOfAGptInClosedForm) {
    const Model m = gpt();
    const std::int64_t h = m.hidden;
    const std::int64_t layer = 12 * h * h + 13 * h;
    EXPECT_EQ(count_parameters(m), 12 * layer + 2 * h + (50304 + 1024) * h);
    EXPECT_EQ(m.padded_vocab(1), 50304);
    EXPECT_EQ(m.padded_vocab(8), 51200);
}

TEST(PlannerModel, FlopsAreTheEstablishedFormula) {
    Model m = gpt();
    m.groups = 4;
    m.gated = true;
    const double h = 1536.0;
    const double s = 1024.0;
    const double bracket = (1.0 + 4.0 / 12.0 + s / h) + 4.0 * 1.5 + 50304.0 / (2.0 * 12.0 * h);
    EXPECT_NEAR(
        training_flops(m, 7.0, true) / (12.0 * 7.0 * s * 12.0 * h * h * bracket), 1.0, 1e-12);
    const double scores = 12.0 * 7.0 * s * 12.0 * h * h * (s / h) / 2.0;
    EXPECT_NEAR(
        training_flops(m, 7.0, true) - training_flops(m, 7.0, false), scores, scores * 1e-9);
}

TEST(PlannerNetwork, RingsTakeWhatTheyMoveOverTheSlowestLink) {
    Hardware h = hardware();
    h.inside.latency_s = h.between.latency_s = 0.0;
    EXPECT_NEAR(shard_time(h, {4, 1}, 4e9), 3e9 / 240e9, 1e-12);
    EXPECT_NEAR(all_reduce_time(h, {4, 1}, 4e9), 2.0 * 3e9 / 240e9, 1e-12);
    // One member per machine uses one adapter, eight of them use eight.
    EXPECT_NEAR(shard_time(h, {4, 8}, 4e9), 3e9 / 20e9, 1e-12);
    EXPECT_LT(shard_time(h, {32, 1}, 4e9), shard_time(h, {4, 8}, 4e9));
    EXPECT_EQ(shard_time(h, {1, 1}, 4e9), 0.0);
    EXPECT_NEAR(send_time(h, {2, 8}, 20e9), 1.0, 1e-12);
    EXPECT_NEAR(send_time(h, {2, 4}, 240e9), 1.0, 1e-12);
}

TEST(PlannerNetwork, TimesGrowWithBytesAndMembers) {
    const Hardware h = hardware();
    for (const int stride : {1, 2, 8, 64}) {
        double before = 0.0;
        for (const int size : {2, 3, 4, 8, 16, 64, 512}) {
            const double time = all_reduce_time(h, {size, stride}, 1e9);
            EXPECT_LE(shard_time(h, {size, stride}, 1e8), shard_time(h, {size, stride}, 1e9));
            EXPECT_GT(time, 0.0);
            if (stride >= 8) {
                EXPECT_GE(time, before * 0.999) << size << " " << stride;
            }
            before = time;
        }
    }
}

TEST(PlannerMatmul, NeverBeatsThePeakNorTheMemory) {
    const Hardware h = hardware();
    for (const double rows : {1.0, 17.0, 128.0, 4096.0, 10000.0}) {
        for (const double cols : {1.0, 255.0, 1024.0, 50304.0}) {
            for (const double inner : {8.0, 1000.0, 8192.0}) {
                const double time = matmul_time(h, rows, cols, inner, 2);
                EXPECT_GE(time, 2.0 * rows * cols * inner / (0.8 * 300e12) * (1.0 - 1e-12));
                EXPECT_GE(time, 2.0 * rows * cols / 1.5e12);
                EXPECT_LE(time, matmul_time(h, rows, cols, 2.0 * inner, 2));
            }
        }
    }
    EXPECT_EQ(matmul_time(h, 0.0, 5.0, 5.0, 2), 0.0);
}

TEST(PlannerLayout, PlacesGroupsByTheOrderOfTheAxes) {
    Layout layout;
    layout.tensor = 4;
    layout.context = 2;
    layout.data = 3;
    layout.pipeline = 5;
    EXPECT_EQ(place_of(layout, "tp").stride, 1);
    EXPECT_EQ(place_of(layout, "cp").stride, 4);
    EXPECT_EQ(place_of(layout, "dp").stride, 8);
    EXPECT_EQ(place_of(layout, "dp-cp").stride, 4);
    EXPECT_EQ(place_of(layout, "dp-cp").size, 6);
    EXPECT_EQ(place_of(layout, "pp").stride, 24);
    layout.order = "tp-pp-dp-cp";
    EXPECT_EQ(place_of(layout, "pp").stride, 4);
    EXPECT_EQ(place_of(layout, "dp").stride, 20);
}

TEST(PlannerLayout, SaysWhyALayoutCannotBeRun) {
    Layout layout;
    EXPECT_EQ(refusal(layout, gpt(), 8), "");
    layout.data = 0;
    EXPECT_EQ(refusal(layout, gpt(), 8), "every degree must be at least 1");
    layout.data = 1;
    EXPECT_NE(refusal(layout, gpt(), 0).find("global batch"), std::string::npos);
    layout.tensor = 5;
    EXPECT_EQ(refusal(layout, gpt(), 8), "attention heads do not divide by tensor parallelism");
    layout.tensor = 1;
    layout.data = 3;
    EXPECT_NE(refusal(layout, gpt(), 8).find("global batch"), std::string::npos);
    layout.data = 1;
    layout.pipeline = 5;
    layout.schedule = "1f1b";
    EXPECT_EQ(refusal(layout, gpt(), 8), "layers do not divide among the pipeline stages");
    layout.first_layers = 2;
    layout.last_layers = 1;
    EXPECT_EQ(refusal(layout, gpt(), 8), "");
    layout.sharding = Sharding::kGradients;
    layout.schedule = "zb-h1";
    EXPECT_NE(refusal(layout, gpt(), 8).find("split the backward"), std::string::npos);
    EXPECT_THROW(estimate(gpt(), layout, hardware(), 8), Error);
}

TEST(PlannerEstimate, BreakdownAddsUpAndPartsAreNotNegative) {
    Layout layout;
    layout.tensor = 2;
    layout.sequence_parallel = true;
    layout.pipeline = 4;
    layout.data = 4;
    layout.sharding = Sharding::kOptimizer;
    layout.overlap_grad_reduce = layout.overlap_param_gather = true;
    for (const char* schedule : {"1f1b", "gpipe", "zb-h1", "zb-h2"}) {
        layout.schedule = schedule;
        const Estimate e = estimate(gpt(), layout, hardware(), 64);
        const Breakdown& b = e.breakdown;
        EXPECT_DOUBLE_EQ(b.total(), e.step_s);
        for (const double part : {b.matmul,
                                  b.attention,
                                  b.memory_bound,
                                  b.launch,
                                  b.recompute,
                                  b.tensor,
                                  b.context,
                                  b.pipeline,
                                  b.data,
                                  b.bubble,
                                  b.optimizer,
                                  b.other}) {
            EXPECT_GE(part, 0.0) << schedule;
        }
        EXPECT_GT(b.bubble, 0.0) << schedule;
        EXPECT_EQ(e.memory.size(), 4u);
    }
}

TEST(PlannerEstimate, BubbleOfOneFOneBIsItsClosedForm) {
    // Without embedding and output that matter, (p - 1) / m of the compute.
    Model m = gpt();
    m.layers = 32;
    m.vocab = 128;
    m.learned_positions = 0;
    Hardware h = hardware();
    h.inside = {1e18, 1.0, 0.0};
    h.between = h.inside;
    Layout layout;
    layout.pipeline = 4;
    layout.schedule = "1f1b";
    const Estimate e = estimate(m, layout, h, 16);
    const Breakdown& b = e.breakdown;
    const double busy = b.matmul + b.attention + b.memory_bound + b.launch;
    EXPECT_NEAR(b.bubble / busy, 3.0 / 16.0, 0.005);
}

TEST(PlannerEstimate, CostsGrowWithWhatMustBeDone) {
    Layout layout;
    layout.data = 8;
    layout.sharding = Sharding::kOptimizer;
    const double base = estimate(gpt(), layout, hardware(), 64).step_s;
    EXPECT_GT(estimate(gpt(), layout, hardware(), 128).step_s, base);
    layout.recompute = Recompute::kFull;
    const Estimate full = estimate(gpt(), layout, hardware(), 64);
    EXPECT_GT(full.step_s, base);
    EXPECT_LT(full.memory_bytes(), estimate(gpt(), {.data = 8}, hardware(), 64).memory_bytes());
    layout.recompute = Recompute::kNone;
    Hardware slow = hardware();
    slow.between.bytes_per_s /= 10.0;
    slow.inside.bytes_per_s /= 10.0;
    EXPECT_GT(estimate(gpt(), layout, slow, 64).step_s, base);
    slow = hardware();
    slow.memory_rate /= 2.0;
    EXPECT_GT(estimate(gpt(), layout, slow, 64).step_s, base);
}

TEST(PlannerEstimate, MoreReplicasNeverNeedMoreMemory) {
    for (const Sharding sharding :
         {Sharding::kNone, Sharding::kOptimizer, Sharding::kGradients, Sharding::kParameters}) {
        double before = std::numeric_limits<double>::infinity();
        for (int data = 1; data <= 256; data *= 2) {
            Layout layout;
            layout.data = data;
            layout.sharding = sharding;
            layout.overlap_grad_reduce = true;
            const double bytes = estimate(gpt(), layout, hardware(), 256).memory_bytes();
            // Each bucket is padded to whole shards of 128 elements.
            EXPECT_LE(bytes, before + 32.0 * 128.0 * 256.0 * 18.0) << data;
            before = bytes;
        }
    }
}

SearchSpace space() {
    SearchSpace s;
    s.gpus = 16;
    s.global_batch = 32;
    s.memory_bytes = 20e9;
    s.tensor = {1, 2, 4};
    s.pipeline = {1, 2, 4};
    s.context = {1, 2};
    s.micro_batch = {1, 2, 4};
    s.virtual_stages = {2, 3};
    s.schedules = planned_schedules();
    s.sequence_parallel = {false, true};
    s.sharding = {Sharding::kNone, Sharding::kOptimizer, Sharding::kParameters};
    s.recompute = {Recompute::kNone, Recompute::kSelective, Recompute::kFull};
    s.overlap_grad_reduce = {true};
    s.overlap_param_gather = {false, true};
    s.top = 1;
    return s;
}

TEST(PlannerSearch, FindsTheBestOfAllThatCanBeEnumerated) {
    const SearchResult found = search(gpt(), hardware(), space());
    ASSERT_EQ(found.plans.size(), 1u);
    EXPECT_FALSE(found.cut_short);
    const SearchSpace s = space();
    double best = std::numeric_limits<double>::infinity();
    std::int64_t legal = 0;
    for (const int t : s.tensor)
        for (const int p : s.pipeline)
            for (const int c : s.context)
                for (const int b : s.micro_batch)
                    for (const bool sp : s.sequence_parallel)
                        for (const auto& name : s.schedules)
                            for (const int v : {1, 2, 3})
                                for (const Sharding sharding : s.sharding)
                                    for (const Recompute recompute : s.recompute)
                                        for (const bool gather : {false, true}) {
                                            Layout l;
                                            l.tensor = t;
                                            l.pipeline = p;
                                            l.context = c;
                                            l.micro_batch = b;
                                            l.data = 16 / (t * p * c);
                                            l.sequence_parallel = sp;
                                            l.virtual_stages = v;
                                            l.schedule = p == 1 ? "none" : name;
                                            if (p == 1 && name != s.schedules.front()) continue;
                                            l.sharding = sharding;
                                            l.recompute = recompute;
                                            l.overlap_grad_reduce = true;
                                            l.overlap_param_gather = gather;
                                            if (!refusal(l, gpt(), 32).empty()) continue;
                                            ++legal;
                                            try {
                                                const auto e = estimate(gpt(), l, hardware(), 32);
                                                if (e.memory_bytes() > s.memory_bytes) continue;
                                                best = std::min(best, e.step_s);
                                            } catch (const Error&) {
                                                continue;
                                            }
                                        }
    EXPECT_GT(legal, 1000);
    EXPECT_DOUBLE_EQ(found.plans[0].second.step_s, best);
    EXPECT_LT(found.simulated, legal);
}

TEST(PlannerSearch, BoundsAreNotAboveTheEstimates) {
    const Model m = gpt();
    const Hardware h = hardware();
    for (const auto& name : planned_schedules()) {
        for (const bool overlaps : {false, true}) {
            Layout l;
            l.pipeline = 4;
            l.data = 2;
            l.schedule = name;
            l.virtual_stages = name == "interleaved" ? 3 : is_v_shaped(name) ? 2 : 1;
            if (!refusal(l, m, 64).empty()) continue;
            l.sharding = Sharding::kOptimizer;
            l.overlap_grad_reduce = l.overlap_param_gather = overlaps;
            const auto blocks = block_costs(m, l, h);
            const StepModel step = step_model(m, l, h, blocks, 64, true);
            const double bound =
                std::max(least_pipeline_time(l, step), least_replica_time(l, step)) +
                replica_tail(l, step) + h.step_overhead_s;
            EXPECT_LE(bound, estimate(m, l, h, 64).step_s * (1.0 + 1e-9)) << name;
        }
    }
}

}  // namespace
}  // namespace megacore::planner
