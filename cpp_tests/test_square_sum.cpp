// kernels/square_sum: every compiled instruction set against float64.
#include <cmath>
#include <limits>

#include "kernels/square_sum.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_error;
using testing::IsaScope;
using testing::runnable_isas;

template <class T>
double sum_of(Buffer<T>& x) {
    const auto size = static_cast<std::int64_t>(x.elements.size());
    std::vector<double> workspace(static_cast<std::size_t>(square_sum_workspace(size)));
    double sum = -1.0;
    SquareSum args{.sum = contiguous_view("sum", &sum, DType::kFloat64, {1}), .x = x.tensor};
    args.workspace = contiguous_view("workspace",
                                     workspace.data(),
                                     DType::kFloat64,
                                     {static_cast<std::int64_t>(workspace.size())});
    cpu::square_sum(args);
    return sum;
}

template <class T>
void check_sum(std::int64_t size) {
    Buffer<T> x("x", {size});
    x.fill_normal(static_cast<unsigned>(size) + 1);
    double exact = 0.0;
    for (std::int64_t i = 0; i < size; ++i) exact += double{x.at(i)} * double{x.at(i)};
    // A lane adds up at most 512 squares (of 4 floats and 2 accumulators).
    EXPECT_LE(std::abs(sum_of(x) - exact), 64 * 0x1p-24 * exact) << size;
}

TEST(SquareSum, AgainstFloat64) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        SCOPED_TRACE(name_of(isa));
        for (const std::int64_t size : {0, 1, 15, 31, 33, 2047, 2048, 2049, 10007}) {
            check_sum<float>(size);
            check_sum<BFloat16>(size);
            check_sum<Float16>(size);
        }
    }
}

TEST(SquareSum, WhatIsNotFiniteShows) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        for (const std::size_t at : {0u, 2047u, 2048u, 4999u}) {
            Buffer<float> x("x", {5000});
            x.elements[at] = bad;
            EXPECT_FALSE(std::isfinite(sum_of(x))) << at;
        }
    }
}

TEST(SquareSum, FaultsNameWhatIsWrong) {
    Buffer<float> x("x", {8});
    double sum = 0.0;
    SquareSum args{.sum = contiguous_view("sum", &sum, DType::kFloat64, {1}), .x = x.tensor};
    args.workspace = contiguous_view("workspace", &sum, DType::kFloat64, {2});
    expect_error([&] { cpu::square_sum(args); }, "expected shape [1], found workspace");
}

}  // namespace
}  // namespace megacore
