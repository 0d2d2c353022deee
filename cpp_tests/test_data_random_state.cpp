// The generator against values of numpy and of the literature, and its bulk path against its
// single draws.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "data/random_state.h"

namespace megacore::data {
namespace {

TEST(RandomState, TenThousandthWordOfTheReferenceSeed) {
    // The C++ standard fixes this value for std::mt19937, which is the same generator.
    RandomState random(5489);
    std::uint32_t word = 0;
    for (int i = 0; i < 10000; ++i) word = random.next32();
    EXPECT_EQ(word, 4123659995u);
}

TEST(RandomState, ShuffleOfNumpy) {
    // numpy.random.RandomState(1234).shuffle(numpy.arange(10))
    RandomState random(1234);
    std::vector<std::int32_t> values(10);
    std::iota(values.begin(), values.end(), 0);
    random.shuffle(std::span<std::int32_t>(values));
    EXPECT_EQ(values, (std::vector<std::int32_t>{7, 2, 9, 1, 0, 8, 4, 5, 6, 3}));
}

template <class T>
void expect_bulk_equals_single(std::size_t size) {
    RandomState bulk(77);
    RandomState single(77);
    std::vector<T> actual(size);
    std::iota(actual.begin(), actual.end(), T{0});
    std::vector<T> expected = actual;
    bulk.shuffle(std::span<T>(actual));
    for (std::size_t i = size; i-- > 1;) std::swap(expected[i], expected[single.interval(i)]);
    EXPECT_EQ(actual, expected) << size << " values";
    EXPECT_EQ(bulk.next32(), single.next32()) << size << " values";
}

TEST(RandomState, BulkDrawsEqualSingleDraws) {
    for (const std::size_t size : {0, 1, 2, 3, 4, 31, 33, 623, 625, 4096, 4097, 8191, 70001}) {
        expect_bulk_equals_single<std::int32_t>(size);
        expect_bulk_equals_single<std::uint64_t>(size);
    }
}

TEST(RandomState, IntervalStaysInside) {
    RandomState random(3);
    for (const std::uint64_t max : {1ull, 6ull, 0xffffffffull, 0x100000000ull, ~0ull}) {
        for (int i = 0; i < 200; ++i) EXPECT_LE(random.interval(max), max);
    }
    for (int i = 0; i < 200; ++i) {
        const double value = random.random_sample();
        EXPECT_GE(value, 0.0);
        EXPECT_LT(value, 1.0);
    }
}

}  // namespace
}  // namespace megacore::data
