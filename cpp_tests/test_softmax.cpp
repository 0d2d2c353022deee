// kernels/softmax: every compiled instruction set against float64.
#include "kernels/softmax.h"
#include "softmax_reference.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_error;
using testing::IsaScope;
using testing::kSoftmaxCases;
using testing::runnable_isas;
using testing::SoftmaxCase;
using testing::SoftmaxProblem;

template <class X>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const SoftmaxCase& c : kSoftmaxCases) {
            SCOPED_TRACE(::testing::Message()
                         << name_of(isa) << " [" << c.queries << ", " << c.keys << "]");
            SoftmaxProblem<X> problem(c);
            cpu::softmax_forward(problem.forward_args());
            cpu::softmax_backward(problem.backward_args());
            problem.expect_result();
        }
    }
}

TEST(Softmax, Float32) { check_all_cases<float>(); }
TEST(Softmax, BFloat16) { check_all_cases<BFloat16>(); }
TEST(Softmax, Float16) { check_all_cases<Float16>(); }

TEST(Softmax, InPlace) {
    SoftmaxProblem<float> apart({1, 2, 5, 5000, {true, 4990}}), together(apart.c);
    cpu::softmax_forward(apart.forward_args());
    SoftmaxForward args = together.forward_args();
    args.y = args.x;
    cpu::softmax_forward(args);
    EXPECT_EQ(apart.y.elements, together.x.elements);
}

TEST(Softmax, Faults) {
    SoftmaxProblem<float> problem({2, 3, 5, 7, {}, 5});
    SoftmaxForward args = problem.forward_args();
    args.mask.sizes[2] = 4;
    expect_error([&] { cpu::softmax_forward(args); }, "or ones, found mask: bool [2, 1, 4, 7]");
    args = problem.forward_args();
    args.range.window = 3;
    expect_error([&] { cpu::softmax_forward(args); }, "window: only with causal");
    Buffer<float> wrong("y", {2, 3, 5, 8});
    args = problem.forward_args();
    args.y = wrong.tensor;
    expect_error([&] { cpu::softmax_forward(args); }, "found y: float32 [2, 3, 5, 8]");
}

}  // namespace
}  // namespace megacore
