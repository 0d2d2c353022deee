// Properties that every plan of buckets has, over many random ones, and a few plans in full.
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "comm/buckets.h"
#include "core/check.h"

namespace megacore::comm {
namespace {

using Params = std::vector<BucketParam>;

TEST(Buckets, OneBucketWithoutLimit) {
    const Params params = {{10}, {64}, {65}};
    const BucketPlan plan = plan_buckets(params, {});
    EXPECT_EQ(plan.ranges, (std::vector<Range>{{0, 10}, {64, 128}, {128, 193}}));
    ASSERT_EQ(plan.buckets.size(), 1U);
    EXPECT_EQ(plan.size(), 256);
    EXPECT_EQ(plan.runs(0, {0, 256}), (std::vector<Piece>{{0, {0, 256}}}));
}

TEST(Buckets, ABucketEndsWhenItHoldsEnough) {
    const Params params = {{100, 0, 0}, {100, 0, 1}, {100, 0, 2}, {1, 0, 3}, {500, 0, 4}};
    const BucketPlan plan = plan_buckets(params, {.max_elements = 200});
    EXPECT_EQ(plan.bucket, (std::vector<std::int32_t>{0, 0, 1, 1, 1}));
}

TEST(Buckets, ShardedBucketsArePaddedToTheCommonMultiple) {
    const BucketPlan plan =
        plan_buckets(Params{{1, 0, 0}, {1, 0, 1}}, {.max_elements = 1, .num_shards = 3});
    ASSERT_EQ(plan.buckets.size(), 2U);
    EXPECT_EQ(plan.buckets[0].range, (Range{0, 384}));  // lcm(3, 128)
    EXPECT_EQ(plan.buckets[1].range, (Range{384, 768}));
    EXPECT_EQ(plan.shard(1, 2), (Range{640, 768}));
    EXPECT_TRUE(plan.pieces(1, {640, 768}).empty());
    EXPECT_THROW(plan.shard(1, 3), Error);
}

TEST(Buckets, EqualKeysLieTogether) {
    const Params params = {{64, 1}, {64, 0}, {64, 1}, {64, 0}};
    const BucketPlan plan = plan_buckets(params, {});
    EXPECT_EQ(plan.buckets[0].params, (std::vector<std::int32_t>{1, 3, 0, 2}));
    EXPECT_EQ(plan.runs(0, {0, 256}), (std::vector<Piece>{{0, {0, 128}}, {1, {128, 256}}}));
    EXPECT_EQ(plan.runs(0, {100, 130}), (std::vector<Piece>{{0, {100, 128}}, {1, {128, 130}}}));
}

TEST(Buckets, UnitsAreNotDivided) {
    const Params params = {{10, 0, 7}, {10, 0, 7}, {10, 0, 8}, {10, 0, 8}, {10, 0, 9}};
    const BucketPlan plan = plan_buckets(params, {.max_elements = 15});
    EXPECT_EQ(plan.bucket, (std::vector<std::int32_t>{0, 0, 1, 1, 2}));
}

TEST(Buckets, NothingAndNonsense) {
    EXPECT_EQ(plan_buckets({}, {}).size(), 0);
    EXPECT_THROW(plan_buckets(Params{{-1}}, {}), Error);
    EXPECT_THROW(plan_buckets(Params{{1}}, {.max_elements = -1}), Error);
    EXPECT_THROW(plan_buckets(Params{{1}}, {.num_shards = 0}), Error);
}

class RandomPlan {
public:
    explicit RandomPlan(unsigned seed) : random_(seed) {
        const auto count = draw(1, 40);
        std::int32_t unit = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            unit += draw(0, 1) != 0;
            params.push_back({draw(0, 3) == 0 ? draw(1, 5000) : draw(1, 200),
                              static_cast<std::int32_t>(draw(0, 2)),
                              unit,
                              draw(0, 9) == 0});
        }
        rules = {draw(0, 3) == 0 ? 0 : draw(1, 4000), draw(1, 12)};
        plan = plan_buckets(params, rules);
    }

    Params params;
    BucketRules rules;
    BucketPlan plan;

private:
    std::int64_t draw(std::int64_t low, std::int64_t high) {
        return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
    }
    std::mt19937 random_;
};

void check_layout(const RandomPlan& random) {
    const BucketPlan& plan = random.plan;
    std::int64_t end = 0;
    std::vector<int> seen(random.params.size(), 0);
    for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
        const Bucket& bucket = plan.buckets[b];
        ASSERT_EQ(bucket.range.begin, end);
        std::int64_t last = end;
        for (const std::int32_t index : bucket.params) {
            ++seen[index];
            ASSERT_EQ(plan.bucket[index], static_cast<std::int32_t>(b));
            ASSERT_EQ(plan.ranges[index].size(), random.params[index].numel);
            ASSERT_EQ(plan.ranges[index].begin % kParamAlignment, 0);
            ASSERT_GE(plan.ranges[index].begin, last);
            last = plan.ranges[index].end;
            if (random.params[index].alone) {
                ASSERT_EQ(bucket.params.size(), 1U);
            }
        }
        end = bucket.range.end;
        ASSERT_GE(end, last);
        const std::int64_t unit = std::lcm(random.rules.num_shards, kShardAlignment);
        ASSERT_LT(end - last, kParamAlignment + unit);
        if (random.rules.num_shards > 1) {
            ASSERT_EQ((end - bucket.range.begin) % unit, 0);
        }
    }
    ASSERT_EQ(plan.size(), end);
    ASSERT_EQ(seen, std::vector<int>(random.params.size(), 1));
}

void check_order(const RandomPlan& random) {
    const BucketPlan& plan = random.plan;
    for (std::size_t i = 1; i < random.params.size(); ++i) {
        ASSERT_GE(plan.bucket[i], plan.bucket[i - 1]);  // in the order of the gradients
        const bool same_unit = random.params[i].unit == random.params[i - 1].unit;
        const bool alone = random.params[i].alone || random.params[i - 1].alone;
        if (same_unit && !alone) {
            ASSERT_EQ(plan.bucket[i], plan.bucket[i - 1]);
        }
    }
}

void check_shards(const RandomPlan& random) {
    const BucketPlan& plan = random.plan;
    std::vector<std::int64_t> covered(random.params.size(), 0);
    for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
        std::int64_t end = plan.buckets[b].range.begin;
        for (std::int64_t s = 0; s < random.rules.num_shards; ++s) {
            const Range shard = plan.shard(static_cast<std::int32_t>(b), s);
            ASSERT_EQ(shard.begin, end);
            end = shard.end;
            std::int64_t run_end = shard.begin;
            const auto runs = plan.runs(static_cast<std::int32_t>(b), shard);
            for (std::size_t r = 0; r < runs.size(); ++r) {
                ASSERT_EQ(runs[r].range.begin, run_end);
                run_end = runs[r].range.end;
                if (r > 0) {
                    ASSERT_NE(runs[r].index, runs[r - 1].index);
                }
            }
            if (!runs.empty()) {
                ASSERT_EQ(run_end, shard.end);
            }
            for (const Piece& piece : plan.pieces(static_cast<std::int32_t>(b), shard)) {
                covered[piece.index] += piece.range.size();
                bool inside = false;
                for (const Piece& run : runs) {
                    inside |= run.index == random.params[piece.index].key &&
                              run.range.begin <= piece.range.begin &&
                              piece.range.end <= run.range.end;
                }
                ASSERT_TRUE(inside);
            }
        }
        ASSERT_EQ(end, plan.buckets[b].range.end);
    }
    for (std::size_t i = 0; i < random.params.size(); ++i) {
        ASSERT_EQ(covered[i], random.params[i].numel);
    }
}

TEST(Buckets, RandomPlansKeepEveryRule) {
    for (unsigned seed = 0; seed < 2000; ++seed) {
        const RandomPlan random(seed);
        SCOPED_TRACE(seed);
        check_layout(random);
        check_order(random);
        check_shards(random);
        if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace megacore::comm
