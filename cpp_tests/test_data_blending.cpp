// Every version of the blending steps gives the choices of the portable one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "data/blend_argmax.h"
#include "data/blend_fixed_point.h"
#include "data/blending.h"
#include "data/fault.h"

namespace megacore::data {
namespace {

/// Aligned arrays of a BlendState.
struct Arrays {
    explicit Arrays(const std::vector<double>& w)
        : blocks((w.size() + kBlendBlock - 1) / kBlendBlock), values(3 * blocks) {
        const std::size_t padded = blocks * kBlendBlock;
        std::fill_n(data(), padded, 0.0);
        std::fill_n(data() + padded, 2 * padded, std::numeric_limits<double>::infinity());
        std::copy(w.begin(), w.end(), data());
        std::fill_n(data() + padded, w.size(), 0.0);
    }
    struct alignas(64) Block {
        double value[kBlendBlock];
    };
    double* data() { return values.front().value; }
    BlendState state() {
        const std::size_t padded = blocks * kBlendBlock;
        return {data(), data() + padded, data() + 2 * padded, blocks};
    }
    std::size_t blocks;
    std::vector<Block> values;
};

struct Choices {
    explicit Choices(std::int64_t size)
        : dataset(static_cast<std::size_t>(size)), sample(static_cast<std::size_t>(size)) {}
    bool operator==(const Choices&) const = default;
    std::vector<std::int16_t> dataset;
    std::vector<std::int64_t> sample;
};

std::vector<double> random_weights(std::size_t count, bool ties) {
    std::mt19937_64 random(count * 2 + ties);
    std::vector<double> weights(count);
    double sum = 0.0;
    for (double& w : weights) {
        w = ties ? static_cast<double>(1 + random() % 3)
                 : static_cast<double>(1 + random() % 1000000);
        sum += w;
    }
    for (double& w : weights) w /= sum;
    return weights;
}

void expect_same_choices(BlendSteps steps, const std::string& name) {
    constexpr std::int64_t kSize = 3000;
    for (const std::size_t count : {1, 2, 7, 8, 9, 15, 17, 24, 100, 128, 129, 333}) {
        for (const bool ties : {false, true}) {
            const std::vector<double> weights = random_weights(count, ties);
            Arrays portable(weights);
            Arrays other(weights);
            Choices expected(kSize);
            Choices actual(kSize);
            blend_steps_portable(
                portable.state(), 0, kSize, expected.dataset.data(), expected.sample.data());
            steps(other.state(), 0, kSize, actual.dataset.data(), actual.sample.data());
            EXPECT_TRUE(actual == expected) << name << ", " << count << " datasets, ties " << ties;
        }
    }
}

#if defined(__x86_64__)
TEST(Blending, Avx2EqualsPortable) {
    if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no AVX2";
    expect_same_choices(blend_steps_avx2, "avx2");
}

TEST(Blending, Avx512EqualsPortable) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq")) {
        GTEST_SKIP() << "no AVX-512";
    }
    expect_same_choices(blend_steps_avx512, "avx512");
}
#endif

TEST(Blending, FixedPointEqualsPortableFromAnyPlace) {
    if (!has_fixed_point_blend()) GTEST_SKIP() << "no AVX-512";
    constexpr std::int64_t kSize = 2000;
    for (const std::size_t count : {1, 3, 16, 17, 40, 100, 128}) {
        for (const std::int64_t begin : {std::int64_t{1},
                                         std::int64_t{5000000},
                                         std::int64_t{3000000000},
                                         (std::int64_t{1} << 34) - 500}) {
            const std::vector<double> weights = random_weights(count, false);
            Arrays portable(weights);
            Arrays other(weights);
            for (std::size_t d = 0; d < count; ++d) {
                // Counts that a blend has after `begin` places, give or take one.
                const double taken = std::floor(weights[d] * static_cast<double>(begin));
                portable.state().counts[d] = taken;
                other.state().counts[d] = taken;
            }
            Choices expected(kSize);
            Choices actual(kSize);
            blend_steps_portable(
                portable.state(), begin, kSize, expected.dataset.data(), expected.sample.data());
            const std::int64_t done = blend_steps_fixed_point(
                other.state(), begin, kSize, actual.dataset.data(), actual.sample.data());
            ASSERT_GE(done, 0);
            ASSERT_LE(done, kSize);
            for (std::int64_t i = 0; i < done; ++i) {
                const auto k = static_cast<std::size_t>(i);
                ASSERT_EQ(actual.dataset[k], expected.dataset[k]) << count << " " << begin + i;
                ASSERT_EQ(actual.sample[k], expected.sample[k]) << count << " " << begin + i;
            }
            if (begin < 3000000000) {
                EXPECT_GT(done, 0) << count << " datasets from " << begin;
            }
        }
    }
}

TEST(Blending, ExhaustiveUsesEverySampleOnce) {
    const std::vector<std::int64_t> sizes{5, 0, 1, 17, 300, 2};
    std::vector<std::int16_t> dataset(325);
    std::vector<std::int64_t> sample(325);
    build_exhaustive_blend(sizes, dataset, sample);
    std::vector<std::int64_t> next(sizes.size(), 0);
    for (std::size_t i = 0; i < dataset.size(); ++i) {
        EXPECT_EQ(sample[i], next[static_cast<std::size_t>(dataset[i])]++);
    }
    EXPECT_EQ(next, sizes);
}

TEST(Blending, WrongWeightsThrow) {
    std::vector<std::int16_t> dataset(1);
    std::vector<std::int64_t> sample(1);
    EXPECT_THROW(build_blend(std::vector<double>{-1.0, 2.0}, dataset, sample), Fault);
    EXPECT_THROW(build_blend(std::vector<double>{}, dataset, sample), Fault);
    EXPECT_THROW(build_exhaustive_blend(std::vector<std::int64_t>{-1, 2}, dataset, sample), Fault);
}

}  // namespace
}  // namespace megacore::data
