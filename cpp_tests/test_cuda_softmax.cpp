// The CUDA kernels of softmax.h under the emulation: against float64, under several orders of
// execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "runtime/emulator.h"
#include "softmax_reference.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::kSoftmaxCases;
using testing::SoftmaxCase;
using testing::SoftmaxProblem;

constexpr unsigned kSeeds = 3;

template <class X>
void run(SoftmaxProblem<X>& p) {
    const std::size_t offset = p.c.offset * sizeof(X);
    const std::size_t size = p.x.elements.size();
    const DeviceArray<X> x("x", p.x.elements, offset), dy("dy", p.dy.elements, offset);
    const DeviceArray<X> y("y", size, offset), dx("dx", size, offset);
    const DeviceArray<std::uint8_t> mask("mask", p.hidden);
    SoftmaxForward forward = p.forward_args();
    forward.x.data = x.data();
    forward.y.data = y.data();
    if (forward.mask.present()) forward.mask.data = mask.data();
    cuda::softmax_forward(forward, nullptr);
    SoftmaxBackward backward = p.backward_args();
    backward.y.data = y.data();
    backward.dy.data = dy.data();
    backward.dx.data = dx.data();
    cuda::softmax_backward(backward, nullptr);
    p.y.elements = y.values();
    p.dx.elements = dx.values();
}

template <class X>
void check_all_cases() {
    for (const SoftmaxCase& c : kSoftmaxCases) {
        SCOPED_TRACE(::testing::Message() << "[" << c.queries << ", " << c.keys << "]");
        SoftmaxProblem<X> p(c);
        cuda_emulation::settings() = {.seed = 0};
        run(p);
        p.expect_result();
        for (unsigned seed = 1; seed < kSeeds; ++seed) {
            SoftmaxProblem<X> other(c);
            cuda_emulation::settings().seed = seed;
            run(other);
            const std::size_t bytes = p.y.elements.size() * sizeof(X);
            EXPECT_EQ(std::memcmp(p.y.elements.data(), other.y.elements.data(), bytes), 0);
            EXPECT_EQ(std::memcmp(p.dx.elements.data(), other.dx.elements.data(), bytes), 0);
        }
    }
    cuda_emulation::settings() = {};
}

TEST(CudaSoftmax, Float32) { check_all_cases<float>(); }
TEST(CudaSoftmax, BFloat16) { check_all_cases<BFloat16>(); }

}  // namespace
}  // namespace megacore
