// kernels/rotary: every compiled instruction set against float64 closed forms.
#include "kernels/rotary.h"
#include "rotary_reference.h"

namespace megacore {
namespace {

using testing::expect_error;
using testing::IsaScope;
using testing::kRotaryCases;
using testing::RotaryCase;
using testing::RotaryProblem;
using testing::runnable_isas;

template <class T>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const RotaryCase& c : kRotaryCases) {
            SCOPED_TRACE(::testing::Message() << name_of(isa) << ", " << c);
            RotaryProblem<T> p(c);
            cpu::rotary(p.args());
            p.expect_result();
        }
    }
}

TEST(Rotary, Float32) { check_all_cases<float>(); }
TEST(Rotary, BFloat16) { check_all_cases<BFloat16>(); }
TEST(Rotary, Float16) { check_all_cases<Float16>(); }

TEST(Rotary, BackwardUndoesForward) {
    RotaryProblem<float> p({.tokens = 6, .groups = 2, .ratio = 2, .size = 16, .half = 8});
    const std::vector<float> before = p.packed.elements;
    Rotary args = p.args();
    cpu::rotary(args);
    args.backward = true;
    cpu::rotary(args);
    for (std::size_t i = 0; i < before.size(); ++i) {
        EXPECT_NEAR(p.packed.elements[i], before[i], 4 * 0x1p-24 * 8);
    }
}

TEST(Rotary, FaultsNameTheTensor) {
    RotaryProblem<float> p({.tokens = 6, .groups = 2, .ratio = 2, .size = 16, .half = 8});
    testing::Buffer<float> rows("cos", {4, 8}), wide("cos", {6, 9});
    Rotary args = p.args();
    args.cos = rows.tensor;
    expect_error([&] { cpu::rotary(args); }, "divides the 6 tokens, found cos");
    args.cos = wide.tensor;
    expect_error([&] { cpu::rotary(args); }, "at most the 16 lanes");
    args = p.args();
    args.v = {};
    expect_error([&] { cpu::rotary(args); }, "expected both k and v or none");
    args = p.args();
    args.packed.sizes[2] = 3;
    expect_error([&] { cpu::rotary(args); }, "packed");
}

}  // namespace
}  // namespace megacore
