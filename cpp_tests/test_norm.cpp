// kernels/norm: every compiled instruction set against float64 closed forms.
//
// Bounds: the output carries one rounding to its type plus a few float32 roundings; a sum of n
// float32 terms carries at most about sqrt(n) of them. They are written as multiples of the
// rounding unit next to the magnitudes they apply to.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/parallel_for.h"
#include "kernels/norm.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_close;
using testing::expect_error;
using testing::IsaScope;
using testing::rounding_error;
using testing::runnable_isas;

struct Shape {
    std::int64_t rows;
    std::int64_t hidden;
};

// 1, primes, non-multiples of every vector width, and more rows than one chunk of backward.
constexpr Shape kShapes[] = {{1, 1}, {3, 7}, {5, 64}, {17, 131}, {2, 1021}, {1100, 48}};
constexpr float kEps = 1e-5f;

template <class X, class W>
struct Problem {
    Shape shape;
    bool layer_norm;
    bool zero_centered;
    Buffer<X> x{"x", {shape.rows, shape.hidden}};
    Buffer<X> out{"out", {shape.rows, shape.hidden}};
    Buffer<X> dout{"dout", {shape.rows, shape.hidden}};
    Buffer<X> dx{"dx", {shape.rows, shape.hidden}};
    Buffer<W> weight{"weight", {shape.hidden}};
    Buffer<W> bias{"bias", {shape.hidden}};
    Buffer<W> dweight{"dweight", {shape.hidden}};
    Buffer<W> dbias{"dbias", {shape.hidden}};
    Buffer<float> mean{"mean", {shape.rows}};
    Buffer<float> rstd{"rstd", {shape.rows}};
    Buffer<float> workspace{"workspace", {cpu::norm_backward_workspace(shape.rows, shape.hidden)}};

    Problem(Shape shape_, bool layer_norm_, bool zero_centered_)
        : shape(shape_), layer_norm(layer_norm_), zero_centered(zero_centered_) {
        x.fill_normal(1, 0.5f);
        weight.fill_normal(2, 1.0f);
        bias.fill_normal(3);
        dout.fill_normal(4);
    }

    NormForward forward_args() {
        NormForward args;
        args.out = out.tensor;
        args.rstd = rstd.tensor;
        args.x = x.tensor;
        args.weight = weight.tensor;
        if (layer_norm) args.mean = mean.tensor;
        if (layer_norm) args.bias = bias.tensor;
        args.eps = kEps;
        args.zero_centered = zero_centered;
        return args;
    }

    NormBackward backward_args() {
        NormBackward args;
        args.dx = dx.tensor;
        args.dweight = dweight.tensor;
        if (layer_norm) args.dbias = dbias.tensor;
        args.dout = dout.tensor;
        args.x = x.tensor;
        args.weight = weight.tensor;
        if (layer_norm) args.mean = mean.tensor;
        args.rstd = rstd.tensor;
        args.zero_centered = zero_centered;
        args.workspace = workspace.tensor;
        return args;
    }

    double scale(std::int64_t column) const { return weight.at(column) + (zero_centered ? 1 : 0); }
};

struct Statistics {
    double mean;
    double rstd;
};

template <class X, class W>
Statistics statistics(const Problem<X, W>& p, std::int64_t row) {
    const double n = static_cast<double>(p.shape.hidden);
    double mean = 0.0;
    double square = 0.0;
    for (std::int64_t i = 0; p.layer_norm && i < p.shape.hidden; ++i) {
        mean += p.x.at(row * p.shape.hidden + i) / n;
    }
    for (std::int64_t i = 0; i < p.shape.hidden; ++i) {
        const double d = p.x.at(row * p.shape.hidden + i) - mean;
        square += d * d / n;
    }
    return {mean, 1.0 / std::sqrt(square + kEps)};
}

template <class X, class W>
void check_forward(Problem<X, W>& p) {
    std::vector<double> expected, bounds;
    const double f32 = 0x1p-24 * (8 + std::sqrt(static_cast<double>(p.shape.hidden)));
    for (std::int64_t row = 0; row < p.shape.rows; ++row) {
        const Statistics s = statistics(p, row);
        for (std::int64_t i = 0; i < p.shape.hidden; ++i) {
            const double x = p.x.at(row * p.shape.hidden + i);
            const double product = (x - s.mean) * s.rstd * p.scale(i);
            const double value = product + (p.layer_norm ? p.bias.at(i) : 0.0);
            // Centring cancels: the error of x and mean is relative to them, not to x - mean.
            const double magnitude =
                (std::abs(x) + std::abs(s.mean)) * s.rstd * std::abs(p.scale(i));
            expected.push_back(value);
            bounds.push_back(rounding_error<X>(value) + f32 * (magnitude + std::abs(value)) +
                             1e-30);
        }
    }
    expect_close(p.out, expected, bounds);
}

template <class X, class W>
void check_backward(Problem<X, W>& p) {
    const std::int64_t hidden = p.shape.hidden;
    const double n = static_cast<double>(hidden);
    const double f32 = 0x1p-24 * (16 + std::sqrt(n));
    std::vector<double> dx, dx_bounds;
    std::vector<double> dweight(hidden), dweight_size(hidden), dbias(hidden), dbias_size(hidden);
    for (std::int64_t row = 0; row < p.shape.rows; ++row) {
        const Statistics s = statistics(p, row);
        double mean_g = 0.0, mean_gx = 0.0, size_g = 0.0, size_gx = 0.0;
        const auto xhat = [&](std::int64_t i) {
            return (p.x.at(row * hidden + i) - s.mean) * s.rstd;
        };
        const auto g = [&](std::int64_t i) { return p.dout.at(row * hidden + i) * p.scale(i); };
        for (std::int64_t i = 0; i < hidden; ++i) {
            mean_g += p.layer_norm ? g(i) / n : 0.0;
            mean_gx += g(i) * xhat(i) / n;
            size_g += std::abs(g(i)) / n;
            size_gx += std::abs(g(i)) * (std::abs(xhat(i)) + std::abs(s.mean * s.rstd)) / n;
            const double dy = p.dout.at(row * hidden + i);
            dweight[i] += dy * xhat(i);
            dweight_size[i] += std::abs(dy) * (std::abs(xhat(i)) + 2 * std::abs(s.mean * s.rstd));
            dbias[i] += dy;
            dbias_size[i] += std::abs(dy);
        }
        for (std::int64_t i = 0; i < hidden; ++i) {
            const double value = s.rstd * (g(i) - xhat(i) * mean_gx - mean_g);
            const double x_size = std::abs(xhat(i)) + 2 * std::abs(s.mean * s.rstd);
            const double size = s.rstd * (std::abs(g(i)) + x_size * size_gx + size_g);
            dx.push_back(value);
            dx_bounds.push_back(rounding_error<X>(value) + f32 * size + 1e-30);
        }
    }
    expect_close(p.dx, dx, dx_bounds);
    std::vector<double> dweight_bounds, dbias_bounds;
    for (std::int64_t i = 0; i < hidden; ++i) {
        dweight_bounds.push_back(rounding_error<W>(dweight[i]) + f32 * dweight_size[i] + 1e-30);
        dbias_bounds.push_back(rounding_error<W>(dbias[i]) + f32 * dbias_size[i] + 1e-30);
    }
    expect_close(p.dweight, dweight, dweight_bounds);
    if (p.layer_norm) expect_close(p.dbias, dbias, dbias_bounds);
}

template <class X, class W>
void check_all_shapes() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const Shape shape : kShapes) {
            for (const int variant : {0, 1, 2, 3}) {
                Problem<X, W> problem(shape, variant % 2 == 0, variant / 2 == 1);
                SCOPED_TRACE(::testing::Message()
                             << name_of(isa) << " [" << shape.rows << ", " << shape.hidden << "] "
                             << (problem.layer_norm ? "LayerNorm" : "RMSNorm")
                             << (problem.zero_centered ? ", zero-centred" : ""));
                cpu::norm_forward(problem.forward_args());
                check_forward(problem);
                cpu::norm_backward(problem.backward_args());
                check_backward(problem);
            }
        }
    }
}

TEST(Norm, Float32) { check_all_shapes<float, float>(); }
TEST(Norm, BFloat16) { check_all_shapes<BFloat16, BFloat16>(); }
TEST(Norm, Float16) { check_all_shapes<Float16, Float16>(); }
TEST(Norm, BFloat16WithFloat32Weights) { check_all_shapes<BFloat16, float>(); }
TEST(Norm, Float16WithFloat32Weights) { check_all_shapes<Float16, float>(); }
TEST(Norm, Float32WithBFloat16Weights) { check_all_shapes<float, BFloat16>(); }

// A loop that cuts the range into pieces of one item, last piece first.
void reversed_pieces(std::int64_t begin, std::int64_t end, std::int64_t, RangeBody body) {
    for (std::int64_t i = end; i > begin; --i) body(i - 1, i);
}

void one_piece(std::int64_t begin, std::int64_t end, std::int64_t, RangeBody body) {
    body(begin, end);
}

TEST(Norm, ResultDoesNotDependOnHowTheLoopIsCut) {
    Problem<BFloat16, float> whole({1100, 200}, true, false);
    cpu::norm_forward(whole.forward_args());
    cpu::norm_backward(whole.backward_args());
    Problem<BFloat16, float> pieces({1100, 200}, true, false);
    set_parallel_for(reversed_pieces);
    cpu::norm_forward(pieces.forward_args());
    cpu::norm_backward(pieces.backward_args());
    set_parallel_for(one_piece);
    const auto same = [](const auto& a, const auto& b) {
        return std::memcmp(a.elements.data(),
                           b.elements.data(),
                           a.elements.size() * sizeof(a.elements[0])) == 0;
    };
    EXPECT_TRUE(same(whole.out, pieces.out));
    EXPECT_TRUE(same(whole.dx, pieces.dx));
    EXPECT_TRUE(same(whole.dweight, pieces.dweight));
    EXPECT_TRUE(same(whole.dbias, pieces.dbias));
}

TEST(Norm, EmptyInput) {
    Problem<float, float> no_rows({0, 5}, true, false);
    cpu::norm_forward(no_rows.forward_args());
    std::fill(no_rows.dweight.elements.begin(), no_rows.dweight.elements.end(), 7.0f);
    cpu::norm_backward(no_rows.backward_args());
    EXPECT_EQ(no_rows.dweight.elements, std::vector<float>(5));  // a sum over no rows
    Problem<float, float> no_columns({5, 0}, false, false);
    cpu::norm_forward(no_columns.forward_args());
    cpu::norm_backward(no_columns.backward_args());
}

TEST(Norm, FaultsNameTheTensor) {
    Problem<float, float> p({4, 8}, true, false);
    Buffer<float> wrong("weight", {7});
    NormForward args = p.forward_args();
    args.weight = wrong.tensor;
    expect_error([&] { cpu::norm_forward(args); }, "expected shape [8], found weight");
    args = p.forward_args();
    args.mean = {};
    expect_error([&] { cpu::norm_forward(args); }, "RMSNorm takes no bias");
    args = p.forward_args();
    args.x.strides[0] = 16;
    expect_error([&] { cpu::norm_forward(args); }, "expected contiguous elements, found x");
    NormBackward backward = p.backward_args();
    Buffer<float> small("workspace", {7});
    backward.workspace = small.tensor;
    expect_error([&] { cpu::norm_backward(backward); }, "found workspace");
    Buffer<Float16> half("weight", {8});
    Problem<BFloat16, BFloat16> mixed({4, 8}, true, false);
    args = mixed.forward_args();
    args.weight = half.tensor;
    expect_error([&] { cpu::norm_forward(args); }, "expected one of float32, bfloat16");
}

TEST(Norm, NotANumberStaysInItsRow) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        Problem<BFloat16, BFloat16> p({3, 37}, true, false);
        p.x.elements[40] = from_float<BFloat16>(std::numeric_limits<float>::quiet_NaN());
        cpu::norm_forward(p.forward_args());
        for (std::int64_t i = 0; i < 3 * 37; ++i) {
            EXPECT_EQ(std::isnan(p.out.at(i)), i / 37 == 1) << i;
        }
    }
}

}  // namespace
}  // namespace megacore
