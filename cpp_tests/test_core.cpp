// core/: conversions, views, checks, the parallel loop.
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/math.h"
#include "core/parallel_for.h"
#include "support.h"

namespace megacore {
namespace {

using testing::expect_error;

TEST(DType, BFloat16RoundTripsEveryValue) {
    for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
        const BFloat16 value{static_cast<std::uint16_t>(bits)};
        const float wide = to_float(value);
        const BFloat16 back = from_float<BFloat16>(wide);
        if (std::isnan(wide)) {
            EXPECT_TRUE(std::isnan(to_float(back)));
        } else {
            EXPECT_EQ(back.bits, value.bits);
        }
    }
}

TEST(DType, Float16RoundTripsEveryValue) {
    for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
        const Float16 value{static_cast<std::uint16_t>(bits)};
        const float wide = to_float(value);
        const Float16 back = from_float<Float16>(wide);
        if (std::isnan(wide)) {
            EXPECT_TRUE(std::isnan(to_float(back)));
        } else {
            EXPECT_EQ(back.bits, value.bits);
        }
    }
}

// Between every two neighbours: the midpoint goes to the even one, its neighbours to the nearer.
template <class T>
void expect_nearest_even(std::uint32_t last_finite) {
    for (std::uint32_t bits = 0; bits < last_finite; ++bits) {
        const float low = to_float(T{static_cast<std::uint16_t>(bits)});
        const float high = to_float(T{static_cast<std::uint16_t>(bits + 1)});
        const float middle = static_cast<float>((static_cast<double>(low) + high) / 2);
        if (middle == low || middle == high) continue;  // no float32 between them
        const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
        ASSERT_EQ(from_float<T>(middle).bits, even) << bits;
        ASSERT_EQ(from_float<T>(std::nextafter(middle, low)).bits, bits);
        ASSERT_EQ(from_float<T>(std::nextafter(middle, high)).bits, bits + 1);
        ASSERT_EQ(from_float<T>(-middle).bits, even | 0x8000u);
    }
}

TEST(DType, RoundsToNearestEven) {
    expect_nearest_even<BFloat16>(0x7f7f);
    expect_nearest_even<Float16>(0x7bff);
}

TEST(DType, OverflowAndInfinity) {
    const float infinity = std::numeric_limits<float>::infinity();
    EXPECT_EQ(from_float<Float16>(infinity).bits, 0x7c00u);
    EXPECT_EQ(from_float<Float16>(65519.0f).bits, 0x7bffu);
    EXPECT_EQ(from_float<Float16>(65520.0f).bits, 0x7c00u);
    EXPECT_EQ(from_float<Float16>(-1e30f).bits, 0xfc00u);
    EXPECT_EQ(from_float<BFloat16>(infinity).bits, 0x7f80u);
    EXPECT_EQ(from_float<BFloat16>(std::numeric_limits<float>::max()).bits, 0x7f80u);
}

TEST(Math, CeilDivAndRoundUp) {
    EXPECT_EQ(ceil_div(0, 7), 0);
    EXPECT_EQ(ceil_div(7, 7), 1);
    EXPECT_EQ(ceil_div(8, 7), 2);
    EXPECT_EQ(round_up(8, 7), 14);
    EXPECT_EQ(ceil_div(6'000'000'000'001, 4), 1'500'000'000'001);
}

TEST(TensorView, ChecksNameTheTensor) {
    std::vector<float> data(6);
    TensorView view = contiguous_view("weight", data.data(), DType::kFloat32, {2, 3});
    EXPECT_EQ(describe(view), "weight: float32 [2, 3]");
    check_shape(view, {2, -1});
    check_contiguous(view);
    expect_error([&] { check_shape(view, {3, 3}); }, "expected shape [3, 3], found weight");
    expect_error([&] { check_shape(view, {6}); }, "[6]");
    expect_error([&] { check_dtype(view, {DType::kBFloat16, DType::kInt64}); },
                 "expected one of bfloat16, int64, found weight: float32");
    view.strides[0] = 4;
    expect_error([&] { check_contiguous(view); }, "stride 4 in dimension 0 instead of 3");
    view.sizes[0] = 1;  // the stride of one row does not matter
    check_contiguous(view);
    view.sizes[1] = 0;
    check_contiguous(view);
    EXPECT_EQ(view.numel(), 0);
}

TEST(Check, SaysWhere) {
    expect_error([] { MEGACORE_CHECK(1 + 1 == 3, "tensor x: ", 5); }, "tensor x: 5 [");
    expect_error([] { MEGACORE_CHECK(1 + 1 == 3, "text"); }, "1 + 1 == 3");
}

TEST(ParallelFor, CoversTheRangeAndSkipsTheEmptyOne) {
    std::vector<int> seen(1001);
    parallel_for(0, 1001, 10, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), 1001);
    parallel_for(5, 5, 1, [](std::int64_t, std::int64_t) { ADD_FAILURE(); });
}

TEST(CpuFeatures, ActiveIsaCanBeLoweredOnly) {
    for (const Isa isa : testing::runnable_isas()) {
        const testing::IsaScope scope(isa);
        EXPECT_EQ(active_isa(), isa);
    }
    EXPECT_EQ(active_isa(), detected_isa());
    if (detected_isa() != Isa::kAvx512) {
        expect_error([] { use_isa(Isa::kAvx512); }, "this CPU runs up to");
    }
}

}  // namespace
}  // namespace megacore
