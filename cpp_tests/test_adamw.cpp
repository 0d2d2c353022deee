// kernels/adamw: every compiled instruction set against float64, and against core/dtype.h for the
// copy, which must be exact.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/parallel_for.h"
#include "kernels/adamw.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_close;
using testing::expect_error;
using testing::IsaScope;
using testing::runnable_isas;

template <class Copy>
struct Problem {
    std::int64_t size;
    Buffer<float> param{"param", {size}};
    Buffer<float> grad{"grad", {size}};
    Buffer<float> exp_avg{"exp_avg", {size}};
    Buffer<float> exp_avg_sq{"exp_avg_sq", {size}};
    Buffer<Copy> model_param{"model_param", {size}};

    explicit Problem(std::int64_t size_) : size(size_) {
        param.fill_normal(1);
        grad.fill_normal(2);
        exp_avg.fill_normal(3);
        exp_avg_sq.fill_normal(4);
        for (float& value : exp_avg_sq.elements) value *= value;
    }

    AdamWStep args() {
        return {.param = param.tensor,
                .exp_avg = exp_avg.tensor,
                .exp_avg_sq = exp_avg_sq.tensor,
                .model_param = model_param.tensor,
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
void check_step(std::int64_t size) {
    Problem<Copy> p(size);
    const Problem<Copy> before(size);
    const AdamWStep args = p.args();
    cpu::adamw_step(args);
    std::vector<double> m, v, w, m_bounds, v_bounds, w_bounds;
    const double unit = 0x1p-24;
    for (std::int64_t i = 0; i < size; ++i) {
        const double g = before.grad.at(i) * args.grad_scale;
        const double old = before.param.at(i);
        m.push_back(args.beta1 * before.exp_avg.at(i) + (1 - args.beta1) * g);
        v.push_back(args.beta2 * before.exp_avg_sq.at(i) + (1 - args.beta2) * g * g);
        const double update = args.lr / (1 - std::pow(args.beta1, 3)) * m.back() /
                              (std::sqrt(v.back() / (1 - std::pow(args.beta2, 3))) + args.eps);
        w.push_back(old * (1 - args.lr * args.weight_decay) - update);
        // Roundings of each product and sum, relative to the terms that are added.
        const double m_size = std::abs(before.exp_avg.at(i)) + std::abs(g);
        m_bounds.push_back(4 * unit * m_size);
        v_bounds.push_back(6 * unit * v.back() + 1e-38);
        const double update_size = std::abs(update) * m_size / (std::abs(m.back()) + 1e-30);
        w_bounds.push_back(unit * (3 * std::abs(old) + 12 * update_size + std::abs(w.back())));
    }
    expect_close(p.exp_avg, m, m_bounds);
    expect_close(p.exp_avg_sq, v, v_bounds);
    expect_close(p.param, w, w_bounds);
    for (std::int64_t i = 0; i < size; ++i) {
        const Copy expected = from_float<Copy>(p.param.elements[i]);
        ASSERT_EQ(std::memcmp(&p.model_param.elements[i], &expected, sizeof(Copy)), 0) << i;
    }
}

TEST(AdamW, AgainstFloat64) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        SCOPED_TRACE(name_of(isa));
        for (const std::int64_t size : {1, 7, 16, 257, 8191, 20011}) {
            check_step<float>(size);
            check_step<BFloat16>(size);
            check_step<Float16>(size);
        }
    }
}

// All kinds of numbers reach the copy: it must round like core/dtype.h on every instruction set.
template <class Copy>
void check_copy_of_special_values() {
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> special{0.0f,
                                     -0.0f,
                                     1e-40f,
                                     -1e-42f,
                                     6e-8f,
                                     2.9e-8f,
                                     6.1e-5f,
                                     1.00390625f,
                                     1.01171875f,
                                     65504.0f,
                                     65519.0f,
                                     65520.0f,
                                     3.4e38f,
                                     infinity,
                                     -infinity,
                                     std::numeric_limits<float>::quiet_NaN(),
                                     -1.0009766f};
    Problem<Copy> p(static_cast<std::int64_t>(special.size()));
    p.param.elements = special;
    p.param.tensor.data = p.param.elements.data();
    AdamWStep args = p.args();
    args.lr = 0.0;
    cpu::adamw_step(args);
    for (std::size_t i = 0; i < special.size(); ++i) {
        const float expected = to_float(from_float<Copy>(special[i]));
        const float actual = static_cast<float>(p.model_param.at(static_cast<std::int64_t>(i)));
        if (std::isnan(expected)) {
            EXPECT_TRUE(std::isnan(actual)) << special[i];
        } else {
            EXPECT_EQ(actual, expected) << special[i];
        }
    }
}

TEST(AdamW, CopyOfSpecialValues) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        SCOPED_TRACE(name_of(isa));
        check_copy_of_special_values<float>();
        check_copy_of_special_values<BFloat16>();
        check_copy_of_special_values<Float16>();
    }
}

TEST(AdamW, WithoutCopyAndEmpty) {
    Problem<float> with(1000);
    Problem<float> without(1000);
    cpu::adamw_step(with.args());
    AdamWStep args = without.args();
    args.model_param = {};
    cpu::adamw_step(args);
    EXPECT_EQ(with.param.elements, without.param.elements);
    Problem<float> empty(0);
    cpu::adamw_step(empty.args());
}

TEST(AdamW, FaultsNameWhatIsWrong) {
    Problem<float> p(8);
    Buffer<float> shorter("grad", {7});
    AdamWStep args = p.args();
    args.grad = shorter.tensor;
    expect_error([&] { cpu::adamw_step(args); }, "expected shape [8], found grad");
    Buffer<BFloat16> half("exp_avg", {8});
    args = p.args();
    args.exp_avg = half.tensor;
    expect_error([&] { cpu::adamw_step(args); }, "expected one of float32, found exp_avg");
    args = p.args();
    args.step = 0;
    expect_error([&] { cpu::adamw_step(args); }, "step: counts from 1, found 0");
    args = p.args();
    args.beta2 = 1.0;
    expect_error([&] { cpu::adamw_step(args); }, "beta2: expected [0, 1), found 1");
}

}  // namespace
}  // namespace megacore
