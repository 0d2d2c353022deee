// The CUDA kernels of square_sum.h under the emulation: against float64, under several orders of
// execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/square_sum.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;

constexpr unsigned kSeeds = 3;

template <class T>
double sum_on_device(const Buffer<T>& x, std::size_t offset) {
    const auto size = static_cast<std::int64_t>(x.elements.size());
    const std::int64_t blocks = square_sum_workspace(size);
    const DeviceArray<T> x_("x", x.elements, offset);
    const DeviceArray<double> workspace("workspace", static_cast<std::size_t>(blocks));
    const DeviceArray<double> sum("sum", std::size_t{1});
    SquareSum args{.sum = contiguous_view("sum", sum.data(), DType::kFloat64, {1}), .x = x.tensor};
    args.x.data = x_.data();
    args.workspace = contiguous_view("workspace", workspace.data(), DType::kFloat64, {blocks});
    cuda::square_sum(args, nullptr);
    return sum.values()[0];
}

template <class T>
void check_all() {
    for (const std::int64_t size : {1, 3, 127, 2047, 2048, 2049, 9001}) {
        for (const std::size_t offset : {std::size_t{0}, sizeof(T)}) {
            SCOPED_TRACE(::testing::Message() << size << " elements, offset " << offset);
            Buffer<T> x("x", {size});
            x.fill_normal(4);
            double exact = 0.0;
            for (std::int64_t i = 0; i < size; ++i) exact += x.at(i) * x.at(i);
            cuda_emulation::settings() = {.seed = 0};
            const double first = sum_on_device(x, offset);
            // 16 squares a thread, and sums of 128 threads in a tree and a chain of 4.
            EXPECT_LE(std::abs(first - exact), 32 * 0x1p-24 * exact);
            for (unsigned seed = 1; seed < kSeeds; ++seed) {
                cuda_emulation::settings() = {.seed = seed};
                EXPECT_EQ(sum_on_device(x, offset), first) << "seed " << seed;
            }
        }
    }
    cuda_emulation::settings() = {};
}

TEST(CudaSquareSum, Float32) { check_all<float>(); }
TEST(CudaSquareSum, BFloat16) { check_all<BFloat16>(); }
TEST(CudaSquareSum, Float16) { check_all<Float16>(); }

TEST(CudaSquareSum, NothingIsZeroAndWhatIsNotFiniteShows) {
    const Buffer<float> nothing("x", {0});
    EXPECT_EQ(sum_on_device(nothing, 0), 0.0);
    Buffer<float> x("x", {2500});
    x.elements[2100] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(sum_on_device(x, 0)));
}

}  // namespace
}  // namespace megacore
