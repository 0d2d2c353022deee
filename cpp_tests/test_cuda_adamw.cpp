// The CUDA kernel of adamw.h under the emulation: against float64 and the CPU kernel, under several
// orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/adamw.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using testing::expect_error;

constexpr unsigned kSeeds = 3;

struct Offsets {
    std::size_t state = 0;  // bytes behind an aligned address
    std::size_t copy = 0;
};

struct Inputs {
    Buffer<float> param, grad, exp_avg, exp_avg_sq;

    explicit Inputs(std::int64_t size)
        : param("param", {size}),
          grad("grad", {size}),
          exp_avg("exp_avg", {size}),
          exp_avg_sq("exp_avg_sq", {size}) {
        param.fill_normal(1);
        grad.fill_normal(2);
        exp_avg.fill_normal(3);
        exp_avg_sq.fill_normal(4);
        for (float& value : exp_avg_sq.elements) value *= value;
    }

    AdamWStep args() const {
        return {.param = param.tensor,
                .exp_avg = exp_avg.tensor,
                .exp_avg_sq = exp_avg_sq.tensor,
                .model_param = {},
                .grad = grad.tensor,
                .lr = 3e-3,
                .beta1 = 0.9,
                .beta2 = 0.95,
                .eps = 1e-8,
                .weight_decay = 0.1,
                .grad_scale = 0.25,
                .step = 3};
    }
};

template <class Copy>
struct Results {
    std::vector<float> param, exp_avg, exp_avg_sq;
    std::vector<Copy> copy;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class Copy>
Results<Copy> run_cuda(const Inputs& in, Offsets offsets, bool with_copy) {
    const DeviceArray<float> param("param", in.param.elements, offsets.state);
    const DeviceArray<float> grad("grad", in.grad.elements, offsets.state);
    const DeviceArray<float> exp_avg("exp_avg", in.exp_avg.elements, offsets.state);
    const DeviceArray<float> exp_avg_sq("exp_avg_sq", in.exp_avg_sq.elements, offsets.state);
    const DeviceArray<Copy> copy("model_param", in.param.elements.size(), offsets.copy);
    const auto size = static_cast<std::int64_t>(param.size());
    AdamWStep args = in.args();
    args.param.data = param.data();
    args.grad.data = grad.data();
    args.exp_avg.data = exp_avg.data();
    args.exp_avg_sq.data = exp_avg_sq.data();
    if (with_copy) {
        args.model_param = contiguous_view("model_param", copy.data(), kDTypeOf<Copy>, {size});
    }
    cuda::adamw_step(args, nullptr);
    Results<Copy> results{param.values(), exp_avg.values(), exp_avg_sq.values(), {}};
    if (with_copy) results.copy = copy.values();
    EXPECT_EQ(grad.values(), in.grad.elements);
    return results;
}

// Errors of each product and sum, relative to the terms that are added; the CPU kernel has the same
// bound, so the two may differ by twice as much.
template <class Copy>
void check_values(const Inputs& in, const Results<Copy>& cuda) {
    Inputs cpu(static_cast<std::int64_t>(cuda.param.size()));
    const AdamWStep args = in.args();
    cpu::adamw_step(cpu.args());
    const double unit = 0x1p-24;
    for (std::size_t i = 0; i < cuda.param.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        const double g = in.grad.at(at) * args.grad_scale;
        const double m = args.beta1 * in.exp_avg.at(at) + (1 - args.beta1) * g;
        const double v = args.beta2 * in.exp_avg_sq.at(at) + (1 - args.beta2) * g * g;
        const double update = args.lr / (1 - std::pow(args.beta1, 3)) * m /
                              (std::sqrt(v / (1 - std::pow(args.beta2, 3))) + args.eps);
        const double w = in.param.at(at) * (1 - args.lr * args.weight_decay) - update;
        const double m_size = std::abs(in.exp_avg.at(at)) + std::abs(g);
        const double m_bound = 4 * unit * m_size;
        const double v_bound = 6 * unit * v + 1e-38;
        const double update_size = std::abs(update) * m_size / (std::abs(m) + 1e-30);
        const double w_bound =
            unit * (3 * std::abs(in.param.at(at)) + 12 * update_size + std::abs(w));
        ASSERT_LE(std::abs(cuda.exp_avg[i] - m), m_bound) << i;
        ASSERT_LE(std::abs(cuda.exp_avg_sq[i] - v), v_bound) << i;
        ASSERT_LE(std::abs(cuda.param[i] - w), w_bound) << i;
        ASSERT_LE(std::abs(cuda.exp_avg[i] - cpu.exp_avg.at(at)), 2 * m_bound) << i;
        ASSERT_LE(std::abs(cuda.exp_avg_sq[i] - cpu.exp_avg_sq.at(at)), 2 * v_bound) << i;
        ASSERT_LE(std::abs(cuda.param[i] - cpu.param.at(at)), 2 * w_bound) << i;
        if (cuda.copy.empty()) continue;
        const Copy rounded = from_float<Copy>(cuda.param[i]);
        ASSERT_EQ(std::memcmp(&cuda.copy[i], &rounded, sizeof(Copy)), 0) << i;
    }
}

template <class Copy>
void check_step(std::int64_t size, Offsets offsets, bool with_copy = true) {
    SCOPED_TRACE(::testing::Message()
                 << size << " elements, offsets " << offsets.state << " and " << offsets.copy);
    const Inputs in(size);
    cuda_emulation::settings() = {.seed = 0};
    const Results<Copy> first = run_cuda<Copy>(in, offsets, with_copy);
    for (unsigned seed = 1; seed < kSeeds; ++seed) {
        cuda_emulation::settings().seed = seed;
        const Results<Copy> other = run_cuda<Copy>(in, offsets, with_copy);
        EXPECT_TRUE(same_bits(first.param, other.param) && same_bits(first.copy, other.copy) &&
                    same_bits(first.exp_avg, other.exp_avg) &&
                    same_bits(first.exp_avg_sq, other.exp_avg_sq))
            << "seed " << seed;
    }
    check_values(in, first);
}

template <class Copy>
void check_all() {
    // 1, below and above a vector, primes, and more than one round of the grid (4 x 8 x 256 x 4).
    for (const std::int64_t size : {1, 3, 4, 7, 257, 1021, 8191, 33000}) {
        check_step<Copy>(size, {});
    }
    check_step<Copy>(1021, {.state = 4});  // nothing is aligned
    check_step<Copy>(1024, {.copy = sizeof(Copy)});
    check_step<Copy>(1024, {.state = 8, .copy = sizeof(Copy)});
}

TEST(CudaAdamW, Float32Copy) { check_all<float>(); }
TEST(CudaAdamW, BFloat16Copy) { check_all<BFloat16>(); }
TEST(CudaAdamW, Float16Copy) { check_all<Float16>(); }

TEST(CudaAdamW, WithoutCopy) {
    check_step<float>(2049, {}, false);
    check_step<float>(2049, {.state = 4}, false);
}

TEST(CudaAdamW, EmptyLaunchesNothing) {
    const Inputs in(0);
    const auto launches = cuda_emulation::counters().launches;
    cuda::adamw_step(in.args(), nullptr);
    EXPECT_EQ(cuda_emulation::counters().launches, launches);
}

TEST(CudaAdamW, FaultsNameWhatIsWrong) {
    const Inputs in(8);
    Buffer<float> shorter("grad", {7});
    AdamWStep args = in.args();
    args.grad = shorter.tensor;
    expect_error([&] { cuda::adamw_step(args, nullptr); }, "expected shape [8], found grad");
}

}  // namespace
}  // namespace megacore
