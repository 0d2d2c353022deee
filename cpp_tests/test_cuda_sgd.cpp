// The CUDA kernel of sgd.h under the emulation: against the CPU kernel, under several orders of
// execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/sgd.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;

constexpr unsigned kSeeds = 3;

template <class Copy>
void check_step(std::int64_t size, std::size_t offset, bool with_momentum) {
    SCOPED_TRACE(::testing::Message() << size << " elements, offset " << offset);
    Buffer<float> param("param", {size}), grad("grad", {size}), momentum("momentum", {size});
    Buffer<Copy> copy("model_param", {size});
    param.fill_normal(1);
    grad.fill_normal(2);
    momentum.fill_normal(3);
    const std::vector<float> param_before = param.elements, momentum_before = momentum.elements;
    SgdStep args{.param = param.tensor, .model_param = copy.tensor, .grad = grad.tensor};
    if (with_momentum) args.momentum_buffer = momentum.tensor;
    args.lr = 0.125;
    args.momentum = with_momentum ? 0.9 : 0.0;
    args.weight_decay = 0.01;
    args.grad_scale = 0.3;
    cpu::sgd_step(args);
    std::vector<float> first;
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        cuda_emulation::settings() = {.seed = seed, .multiprocessors = 2};
        const DeviceArray<float> param_("param", param_before, offset);
        const DeviceArray<float> momentum_("momentum", momentum_before, offset);
        const DeviceArray<float> grad_("grad", grad.elements, offset);
        const DeviceArray<Copy> copy_("copy", param_before.size(), offset);
        args.param.data = param_.data();
        args.grad.data = grad_.data();
        args.model_param.data = copy_.data();
        if (with_momentum) args.momentum_buffer.data = momentum_.data();
        cuda::sgd_step(args, nullptr);
        const std::vector<float> found = param_.values();
        const std::vector<Copy> copies = copy_.values();
        if (seed == 0) first = found;
        EXPECT_EQ(std::memcmp(found.data(), first.data(), found.size() * sizeof(float)), 0);
        for (std::size_t i = 0; i < found.size(); ++i) {
            // Two kernels with the same roundings but for products that one of them fuses.
            const double terms = std::abs(param_before[i]) + std::abs(grad.elements[i]) +
                                 std::abs(momentum_before[i]);
            ASSERT_LE(std::abs(found[i] - param.elements[i]), 12 * 0x1p-24 * terms) << i;
            const Copy rounded = from_float<Copy>(found[i]);
            ASSERT_EQ(std::memcmp(&copies[i], &rounded, sizeof(Copy)), 0) << i;
        }
        if (with_momentum) {
            const std::vector<float> moved = momentum_.values();
            for (std::size_t i = 0; i < moved.size(); ++i) {
                ASSERT_NEAR(moved[i], momentum.elements[i], 1e-5) << i;
            }
        }
    }
    cuda_emulation::settings() = {};
}

template <class Copy>
void check_all() {
    // 1, below and above a vector, primes, more than one round of the grid (2 x 8 x 256 x 4).
    for (const std::int64_t size : {1, 3, 4, 7, 257, 1021, 17000}) {
        check_step<Copy>(size, 0, size % 2 == 1);
    }
    check_step<Copy>(1021, 4, true);
    check_step<Copy>(64, 8, false);
}

TEST(CudaSgd, Float32Copy) { check_all<float>(); }
TEST(CudaSgd, BFloat16Copy) { check_all<BFloat16>(); }
TEST(CudaSgd, Float16Copy) { check_all<Float16>(); }

}  // namespace
}  // namespace megacore
