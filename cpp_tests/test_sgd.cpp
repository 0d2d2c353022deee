// kernels/sgd: every compiled instruction set against float64, and against core/dtype.h for the
// copy, which must be exact.
#include <cmath>
#include <cstring>

#include "kernels/sgd.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_error;
using testing::IsaScope;
using testing::runnable_isas;

template <class Copy>
struct Problem {
    Buffer<float> param, grad, momentum;
    Buffer<Copy> copy;

    explicit Problem(std::int64_t size)
        : param("param", {size}),
          grad("grad", {size}),
          momentum("momentum_buffer", {size}),
          copy("model_param", {size}) {
        param.fill_normal(1);
        grad.fill_normal(2);
        momentum.fill_normal(3);
    }

    SgdStep args(bool with_momentum) {
        SgdStep step{.param = param.tensor, .model_param = copy.tensor, .grad = grad.tensor};
        if (with_momentum) step.momentum_buffer = momentum.tensor;
        step.lr = 0.125;
        step.momentum = with_momentum ? 0.9 : 0.0;
        step.weight_decay = 0.01;
        step.grad_scale = 0.3;
        return step;
    }
};

template <class Copy>
void check_step(std::int64_t size, bool with_momentum) {
    Problem<Copy> p(size);
    const Problem<Copy> before(size);
    const SgdStep args = p.args(with_momentum);
    cpu::sgd_step(args);
    for (std::int64_t i = 0; i < size; ++i) {
        const double old = before.param.at(i);
        const double g = before.grad.at(i) * args.grad_scale + args.weight_decay * old;
        const double m = with_momentum ? args.momentum * before.momentum.at(i) + g : g;
        const double terms =
            std::abs(before.grad.at(i)) + std::abs(before.momentum.at(i)) + std::abs(old);
        if (with_momentum) {
            ASSERT_LE(std::abs(p.momentum.at(i) - m), 6 * 0x1p-24 * terms) << i;
        }
        ASSERT_LE(std::abs(p.param.at(i) - (old - args.lr * m)), 6 * 0x1p-24 * terms) << i;
        const Copy expected = from_float<Copy>(p.param.elements[i]);
        ASSERT_EQ(std::memcmp(&p.copy.elements[i], &expected, sizeof(Copy)), 0) << i;
    }
}

TEST(Sgd, AgainstFloat64) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        SCOPED_TRACE(name_of(isa));
        for (const std::int64_t size : {0, 1, 7, 16, 257, 8191}) {
            for (const bool with_momentum : {false, true}) {
                check_step<float>(size, with_momentum);
                check_step<BFloat16>(size, with_momentum);
                check_step<Float16>(size, with_momentum);
            }
        }
    }
}

TEST(Sgd, FaultsNameWhatIsWrong) {
    Problem<float> p(8);
    SgdStep args = p.args(false);
    args.momentum = 0.5;
    expect_error([&] { cpu::sgd_step(args); }, "momentum_buffer: needed with a momentum of 0.5");
    args = p.args(true);
    args.momentum = 1.0;
    expect_error([&] { cpu::sgd_step(args); }, "momentum: expected [0, 1), found 1");
    Buffer<float> shorter("grad", {7});
    args = p.args(true);
    args.grad = shorter.tensor;
    expect_error([&] { cpu::sgd_step(args); }, "expected shape [8], found grad");
}

}  // namespace
}  // namespace megacore
