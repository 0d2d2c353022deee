// kernels/activation: every compiled instruction set against float64 closed forms.
#include <limits>

#include "activation_reference.h"
#include "core/parallel_for.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_activation;
using testing::expect_close;
using testing::expect_error;
using testing::IsaScope;
using testing::kActivations;
using testing::runnable_isas;

struct Case {
    std::int64_t rows;
    std::int64_t inner;
    bool gated;
    bool bias;
};

// 1, primes, non-multiples of every vector width, and more rows than one chunk of backward.
constexpr Case kCases[] = {{1, 1, false, true},
                           {3, 7, true, true},
                           {5, 64, false, false},
                           {17, 131, true, false},
                           {1100, 24, true, true},
                           {1030, 17, false, true}};

template <class X>
struct Problem {
    Case shape;
    Activation activation;
    std::int64_t width = shape.inner * (shape.gated ? 2 : 1);
    Buffer<X> x{"x", {shape.rows, width}};
    Buffer<X> bias{"bias", {width}};
    Buffer<X> out{"out", {shape.rows, shape.inner}};
    Buffer<X> dout{"dout", {shape.rows, shape.inner}};
    Buffer<X> dx{"dx", {shape.rows, width}};
    Buffer<X> dbias{"dbias", {width}};
    Buffer<float> workspace{"workspace", {cpu::activation_backward_workspace(shape.rows, width)}};

    Problem(Case shape_, Activation activation_) : shape(shape_), activation(activation_) {
        x.fill_normal(1, 0.5f);
        bias.fill_normal(2);
        dout.fill_normal(3);
    }

    ActivationForward forward_args() {
        ActivationForward args{.out = out.tensor, .x = x.tensor};
        if (shape.bias) args.bias = bias.tensor;
        args.activation = activation;
        args.gated = shape.gated;
        return args;
    }

    ActivationBackward backward_args() {
        ActivationBackward args{.dx = dx.tensor, .dout = dout.tensor, .x = x.tensor};
        if (shape.bias) {
            args.dbias = dbias.tensor;
            args.bias = bias.tensor;
            args.workspace = workspace.tensor;
        }
        args.activation = activation;
        args.gated = shape.gated;
        return args;
    }

    void run() {
        cpu::activation_forward(forward_args());
        cpu::activation_backward(backward_args());
    }
};

template <class X>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const Case& c : kCases) {
            for (const Activation activation : kActivations) {
                SCOPED_TRACE(::testing::Message()
                             << name_of(isa) << " [" << c.rows << ", " << c.inner << "] activation "
                             << static_cast<int>(activation) << (c.gated ? ", gated" : ""));
                Problem<X> p(c, activation);
                p.run();
                const auto expected =
                    expect_activation(p.x, c.bias ? &p.bias : nullptr, p.dout, activation, c.gated);
                expect_close(p.out, expected.out.values, expected.out.bounds);
                expect_close(p.dx, expected.dx.values, expected.dx.bounds);
                if (c.bias) expect_close(p.dbias, expected.dbias.values, expected.dbias.bounds);
            }
        }
    }
}

TEST(Activation, Float32) { check_all_cases<float>(); }
TEST(Activation, BFloat16) { check_all_cases<BFloat16>(); }
TEST(Activation, Float16) { check_all_cases<Float16>(); }

TEST(Activation, FarValuesAndNaN) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const Activation activation : kActivations) {
            Problem<float> p({1, 5, false, false}, activation);
            p.x.elements = {-1e4f, 1e4f, -89.0f, std::numeric_limits<float>::quiet_NaN(), -0.0f};
            p.run();
            const double high = activation == Activation::kSquaredRelu ? 1e8 : 1e4;
            const std::vector<float>& out = p.out.elements;
            EXPECT_LE(std::abs(out[0]), 1e-30f);
            EXPECT_FLOAT_EQ(out[1], static_cast<float>(high));
            EXPECT_LE(std::abs(out[2]), 1e-30f);
            EXPECT_TRUE(std::isnan(out[3]));
            EXPECT_EQ(out[4], 0.0f);
            EXPECT_TRUE(std::isnan(p.dx.elements[3]));
        }
    }
}

void reversed_pieces(std::int64_t begin, std::int64_t end, std::int64_t, RangeBody body) {
    for (std::int64_t i = end; i > begin; --i) body(i - 1, i);
}

void one_piece(std::int64_t begin, std::int64_t end, std::int64_t, RangeBody body) {
    body(begin, end);
}

TEST(Activation, ResultDoesNotDependOnHowTheLoopIsCut) {
    Problem<float> whole({1100, 40, true, true}, Activation::kSilu);
    whole.run();
    Problem<float> pieces({1100, 40, true, true}, Activation::kSilu);
    set_parallel_for(reversed_pieces);
    pieces.run();
    set_parallel_for(one_piece);
    EXPECT_EQ(whole.out.elements, pieces.out.elements);
    EXPECT_EQ(whole.dx.elements, pieces.dx.elements);
    EXPECT_EQ(whole.dbias.elements, pieces.dbias.elements);
}

TEST(Activation, FaultsNameTheTensor) {
    Problem<float> p({4, 8, true, true}, Activation::kSilu);
    Buffer<float> wrong("bias", {7});
    ActivationForward args = p.forward_args();
    args.bias = wrong.tensor;
    expect_error([&] { cpu::activation_forward(args); }, "expected shape [16], found bias");
    args = p.forward_args();
    args.activation = static_cast<Activation>(5);
    expect_error([&] { cpu::activation_forward(args); }, "activation: expected a number below 5");
    args = p.forward_args();
    args.x.strides[0] = 32;
    expect_error([&] { cpu::activation_forward(args); }, "x");
    ActivationBackward backward = p.backward_args();
    backward.dbias = {};
    expect_error([&] { cpu::activation_backward(backward); }, "dbias: expected exactly with");
    Buffer<float> small("workspace", {7});
    backward = p.backward_args();
    backward.workspace = small.tensor;
    expect_error([&] { cpu::activation_backward(backward); }, "workspace");
}

}  // namespace
}  // namespace megacore
