// kernels/cross_entropy: every compiled instruction set against float64 closed forms.
#include <limits>

#include "cross_entropy_reference.h"

namespace megacore {
namespace {

using testing::CrossEntropyCase;
using testing::CrossEntropyProblem;
using testing::expect_error;
using testing::IsaScope;
using testing::kCrossEntropyCases;
using testing::runnable_isas;

template <class X>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const CrossEntropyCase& c : kCrossEntropyCases) {
            SCOPED_TRACE(::testing::Message()
                         << name_of(isa) << " [" << c.rows << ", " << c.columns << "]");
            CrossEntropyProblem<X> p(c);
            cpu::cross_entropy_forward(p.forward_args());
            cpu::cross_entropy_backward(p.backward_args());
            p.expect_result();
        }
    }
}

TEST(CrossEntropy, Float32) { check_all_cases<float>(); }
TEST(CrossEntropy, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CrossEntropy, Float16) { check_all_cases<Float16>(); }

TEST(CrossEntropy, InPlaceIsTheSame) {
    CrossEntropyProblem<BFloat16> p({5, 131, 3, true});
    cpu::cross_entropy_forward(p.forward_args());
    cpu::cross_entropy_backward(p.backward_args());
    CrossEntropyBackward args = p.backward_args();
    args.dlogits = args.logits;
    cpu::cross_entropy_backward(args);
    for (std::size_t i = 0; i < p.logits.elements.size(); ++i) {
        ASSERT_EQ(p.logits.elements[i].bits, p.dlogits.elements[i].bits);
    }
}

TEST(CrossEntropy, NothingButMinusInfinity) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        CrossEntropyProblem<float> p({2, 21});
        const float infinity = std::numeric_limits<float>::infinity();
        for (float& x : p.logits.elements) x = -infinity;
        p.logits.elements[30] = 3.0f;
        cpu::cross_entropy_forward(p.forward_args());
        EXPECT_EQ(p.largest.elements, (std::vector<float>{-infinity, 3.0f}));
        EXPECT_EQ(p.total.elements, (std::vector<float>{0.0f, 1.0f}));
    }
}

TEST(CrossEntropy, FaultsNameTheTensor) {
    CrossEntropyProblem<float> p({4, 8});
    testing::Buffer<float> wrong("factor", {3}), none("logits", {4, 0});
    CrossEntropyBackward backward = p.backward_args();
    backward.factor = wrong.tensor;
    expect_error([&] { cpu::cross_entropy_backward(backward); },
                 "expected shape [4], found factor");
    CrossEntropyForward forward = p.forward_args();
    forward.logits = none.tensor;
    expect_error([&] { cpu::cross_entropy_forward(forward); }, "logits: expected at least one");
    forward = p.forward_args();
    forward.labels.dtype = DType::kInt32;
    expect_error([&] { cpu::cross_entropy_forward(forward); }, "labels");
}

}  // namespace
}  // namespace megacore
