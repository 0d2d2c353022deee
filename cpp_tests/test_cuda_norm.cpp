// The CUDA kernels of norm.h under the emulation: against float64 closed forms and the CPU kernels,
// under several orders of execution, with every access checked.
//
// Bounds against float64: one rounding to the type of the output, and float32 roundings of the
// terms that are added; a sum of n terms carries about sqrt(n) of them. Two kernels within their
// bounds differ by at most twice that.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/check.h"
#include "kernels/norm.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using testing::expect_error;
using testing::rounding_of;

constexpr float kEps = 1e-5f;
constexpr unsigned kSeeds = 3;

struct Case {
    std::int64_t rows;
    std::int64_t hidden;
    bool layer_norm = true;
    bool zero_centered = false;
    std::size_t offset = 0;  // bytes behind an aligned address
};

// 1, primes, non-multiples; rows in one warp, in one block, kept in registers and too long for it.
const Case kCases[] = {
    {1, 1, true},
    {3, 7, false, true},
    {5, 64, true, true},
    {7, 128, false},
    {17, 131, true},
    {23, 1000, false},
    {2, 2048, true},
    {1, 4104, false, true},
    {3, 4099, true},
    {1, 16392, true, true},
    {2, 17000, false},
    {6, 256, true, false, 4},  // vectors would fit, but the memory is not aligned
    {3, 2048, false, true, 2},
};

// Inputs on the host.
template <class X, class W>
struct Inputs {
    Buffer<X> x, dout;
    Buffer<W> weight, bias;

    explicit Inputs(const Case& c)
        : x("x", {c.rows, c.hidden}),
          dout("dout", {c.rows, c.hidden}),
          weight("weight", {c.hidden}),
          bias("bias", {c.hidden}) {
        x.fill_normal(1, 0.5f);
        dout.fill_normal(2);
        weight.fill_normal(3, 1.0f);
        bias.fill_normal(4);
    }
};

template <class X, class W>
struct Results {
    std::vector<X> out, dx;
    std::vector<W> dweight, dbias;
    std::vector<float> mean, rstd;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T>
TensorView view(const char* name, const DeviceArray<T>& array, std::int64_t rows) {
    const auto count = static_cast<std::int64_t>(array.size());
    if (rows == 0) return contiguous_view(name, array.data(), kDTypeOf<T>, {count});
    return contiguous_view(name, array.data(), kDTypeOf<T>, {rows, count / rows});
}

template <class X, class W>
Results<X, W> run_cuda(const Case& c, const Inputs<X, W>& in) {
    // A misaligned start has to be one that the element type allows.
    const std::size_t x_offset = std::max(c.offset, c.offset > 0 ? sizeof(X) : 0);
    const std::size_t w_offset = c.offset > 0 ? sizeof(W) : 0;
    const std::size_t count = in.x.elements.size();
    const DeviceArray<X> x("x", in.x.elements, x_offset), dout("dout", in.dout.elements, x_offset);
    const DeviceArray<W> weight("weight", in.weight.elements, w_offset);
    const DeviceArray<W> bias("bias", in.bias.elements, w_offset);
    const DeviceArray<X> out("out", count, x_offset), dx("dx", count, x_offset);
    const DeviceArray<W> dweight("dweight", c.hidden), dbias("dbias", c.hidden);
    const DeviceArray<float> mean("mean", c.rows), rstd("rstd", c.rows);
    const DeviceArray<float> workspace("workspace",
                                       cuda::norm_backward_workspace(c.rows, c.hidden));
    NormForward forward;
    forward.out = view("out", out, c.rows);
    forward.rstd = view("rstd", rstd, 0);
    forward.x = view("x", x, c.rows);
    forward.weight = view("weight", weight, 0);
    if (c.layer_norm) forward.mean = view("mean", mean, 0);
    if (c.layer_norm) forward.bias = view("bias", bias, 0);
    forward.eps = kEps;
    forward.zero_centered = c.zero_centered;
    cuda::norm_forward(forward, nullptr);

    NormBackward backward;
    backward.dx = view("dx", dx, c.rows);
    backward.dweight = view("dweight", dweight, 0);
    if (c.layer_norm) backward.dbias = view("dbias", dbias, 0);
    backward.dout = view("dout", dout, c.rows);
    backward.x = forward.x;
    backward.weight = forward.weight;
    backward.mean = forward.mean;
    backward.rstd = forward.rstd;
    backward.zero_centered = c.zero_centered;
    backward.workspace = view("workspace", workspace, 0);
    cuda::norm_backward(backward, nullptr);

    Results<X, W> results{out.values(), dx.values(), dweight.values(), {}, {}, rstd.values()};
    if (c.layer_norm) results.dbias = dbias.values();
    if (c.layer_norm) results.mean = mean.values();
    return results;
}

template <class X, class W>
Results<X, W> run_cpu(const Case& c, Inputs<X, W>& in) {
    Buffer<X> out("out", {c.rows, c.hidden}), dx("dx", {c.rows, c.hidden});
    Buffer<W> dweight("dweight", {c.hidden}), dbias("dbias", {c.hidden});
    Buffer<float> mean("mean", {c.rows}), rstd("rstd", {c.rows});
    Buffer<float> workspace("workspace", {cpu::norm_backward_workspace(c.rows, c.hidden)});
    NormForward forward;
    forward.out = out.tensor;
    forward.rstd = rstd.tensor;
    forward.x = in.x.tensor;
    forward.weight = in.weight.tensor;
    if (c.layer_norm) forward.mean = mean.tensor;
    if (c.layer_norm) forward.bias = in.bias.tensor;
    forward.eps = kEps;
    forward.zero_centered = c.zero_centered;
    cpu::norm_forward(forward);
    NormBackward backward;
    backward.dx = dx.tensor;
    backward.dweight = dweight.tensor;
    if (c.layer_norm) backward.dbias = dbias.tensor;
    backward.dout = in.dout.tensor;
    backward.x = in.x.tensor;
    backward.weight = in.weight.tensor;
    backward.mean = forward.mean;
    backward.rstd = rstd.tensor;
    backward.zero_centered = c.zero_centered;
    backward.workspace = workspace.tensor;
    cpu::norm_backward(backward);
    return {out.elements, dx.elements, dweight.elements, dbias.elements, {}, rstd.elements};
}

// Half the distance of the smallest numbers: what rounding costs where T has run out of exponents.
template <class T>
constexpr double smallest_rounding() {
    return kDTypeOf<T> == DType::kFloat16 ? 0x1p-25 : 1e-38;
}

// A value in float64 and how far a float32 kernel may be from it.
struct Expected {
    std::vector<double> values, bounds;

    // The kernel writes the value as a T.
    template <class T>
    void add(double value, double float32_error) {
        values.push_back(value);
        bounds.push_back(rounding_of<T>() * std::abs(value) + smallest_rounding<T>() +
                         float32_error);
    }
};

struct Reference {
    Expected out, dx, dweight, dbias, mean, rstd;
};

template <class X, class W>
Reference reference(const Case& c, const Inputs<X, W>& in) {
    Reference ref;
    const std::int64_t hidden = c.hidden;
    const double n = static_cast<double>(hidden);
    const double f32 = 0x1p-24 * (16 + std::sqrt(n));
    std::vector<double> dweight(hidden), dweight_size(hidden), dbias(hidden), dbias_size(hidden);
    for (std::int64_t row = 0; row < c.rows; ++row) {
        const auto x = [&](std::int64_t i) { return in.x.at(row * hidden + i); };
        const auto dy = [&](std::int64_t i) { return in.dout.at(row * hidden + i); };
        const auto w = [&](std::int64_t i) {
            return in.weight.at(i) + (c.zero_centered ? 1.0 : 0.0);
        };
        double mean = 0.0, mean_size = 0.0, square = 0.0;
        for (std::int64_t i = 0; c.layer_norm && i < hidden; ++i) {
            mean += x(i) / n;
            mean_size += std::abs(x(i)) / n;
        }
        for (std::int64_t i = 0; i < hidden; ++i) square += (x(i) - mean) * (x(i) - mean) / n;
        const double rstd = 1.0 / std::sqrt(square + kEps);
        // A row of one element has no variance: x - mean is rounding alone, blown up by rstd.
        const double centre = std::abs(mean * rstd);
        double mean_g = 0.0, mean_gx = 0.0, size_g = 0.0, size_gx = 0.0;
        for (std::int64_t i = 0; i < hidden; ++i) {
            const double xhat = (x(i) - mean) * rstd;
            const double value = xhat * w(i) + (c.layer_norm ? in.bias.at(i) : 0.0);
            const double size = (std::abs(x(i)) * rstd + centre) * std::abs(w(i));
            ref.out.add<X>(value, f32 * (size + std::abs(value)));
            const double g = dy(i) * w(i);
            mean_g += c.layer_norm ? g / n : 0.0;
            mean_gx += g * xhat / n;
            size_g += std::abs(g) / n;
            size_gx += std::abs(g) * (std::abs(xhat) + centre) / n;
            dweight[i] += dy(i) * xhat;
            dweight_size[i] += std::abs(dy(i)) * (std::abs(xhat) + 2 * centre);
            dbias[i] += dy(i);
            dbias_size[i] += std::abs(dy(i));
        }
        for (std::int64_t i = 0; i < hidden; ++i) {
            const double xhat = (x(i) - mean) * rstd;
            const double g = dy(i) * w(i);
            const double x_size = std::abs(xhat) + 2 * centre;
            const double size = rstd * (std::abs(g) + x_size * size_gx + size_g);
            ref.dx.add<X>(rstd * (g - xhat * mean_gx - mean_g), f32 * size);
        }
        ref.mean.add<float>(mean, f32 * mean_size);
        ref.rstd.add<float>(rstd, f32 * rstd * (1 + centre * centre));
    }
    for (std::int64_t i = 0; i < hidden; ++i) {
        ref.dweight.add<W>(dweight[i], f32 * dweight_size[i]);
        ref.dbias.add<W>(dbias[i], f32 * dbias_size[i]);
    }
    return ref;
}

template <class T>
void expect_near(const char* name,
                 const std::vector<T>& cuda,
                 const std::vector<T>& cpu,
                 const Expected& expected) {
    ASSERT_EQ(cuda.size(), expected.values.size()) << name;
    for (std::size_t i = 0; i < cuda.size(); ++i) {
        const double value = to_float(cuda[i]);
        ASSERT_LE(std::abs(value - expected.values[i]), expected.bounds[i])
            << name << "[" << i << "] is " << value << ", expected " << expected.values[i];
        if (cpu.empty()) continue;
        ASSERT_LE(std::abs(value - to_float(cpu[i])), 2 * expected.bounds[i])
            << name << "[" << i << "] is " << value << ", on the CPU " << to_float(cpu[i]);
    }
}

template <class X, class W>
void check_case(const Case& c) {
    SCOPED_TRACE(::testing::Message()
                 << "[" << c.rows << ", " << c.hidden << "] "
                 << (c.layer_norm ? "LayerNorm" : "RMSNorm")
                 << (c.zero_centered ? ", zero-centred" : "") << ", offset " << c.offset);
    Inputs<X, W> in(c);
    cuda_emulation::settings() = {.seed = 0};
    const Results<X, W> first = run_cuda(c, in);
    for (unsigned seed = 1; seed < kSeeds; ++seed) {
        cuda_emulation::settings().seed = seed;
        const Results<X, W> other = run_cuda(c, in);
        EXPECT_TRUE(same_bits(first.out, other.out) && same_bits(first.dx, other.dx) &&
                    same_bits(first.dweight, other.dweight) &&
                    same_bits(first.dbias, other.dbias) && same_bits(first.mean, other.mean) &&
                    same_bits(first.rstd, other.rstd))
            << "seed " << seed;
    }
    const Results<X, W> cpu = run_cpu(c, in);
    const Reference ref = reference(c, in);
    expect_near("out", first.out, cpu.out, ref.out);
    expect_near("dx", first.dx, cpu.dx, ref.dx);
    expect_near("dweight", first.dweight, cpu.dweight, ref.dweight);
    expect_near("rstd", first.rstd, cpu.rstd, ref.rstd);
    if (!c.layer_norm) return;
    expect_near("dbias", first.dbias, cpu.dbias, ref.dbias);
    expect_near("mean", first.mean, {}, ref.mean);
}

template <class X, class W>
void check_all_cases() {
    for (const Case& c : kCases) check_case<X, W>(c);
}

TEST(CudaNorm, Float32) { check_all_cases<float, float>(); }
TEST(CudaNorm, BFloat16) { check_all_cases<BFloat16, BFloat16>(); }
TEST(CudaNorm, Float16) { check_all_cases<Float16, Float16>(); }
TEST(CudaNorm, BFloat16WithFloat32Weights) { check_all_cases<BFloat16, float>(); }
TEST(CudaNorm, Float16WithFloat32Weights) { check_all_cases<Float16, float>(); }
TEST(CudaNorm, Float32WithBFloat16Weights) { check_all_cases<float, BFloat16>(); }
TEST(CudaNorm, Float32WithFloat16Weights) { check_all_cases<float, Float16>(); }

TEST(CudaNorm, GridsOfOtherDevices) {
    // The number of partial sums follows the number of multiprocessors.
    for (const int multiprocessors : {1, 132}) {
        const Case c{257, 48, true};
        Inputs<BFloat16, float> in(c);
        cuda_emulation::settings() = {.multiprocessors = multiprocessors};
        const Results<BFloat16, float> results = run_cuda(c, in);
        const Reference ref = reference(c, in);
        expect_near("out", results.out, {}, ref.out);
        expect_near("dx", results.dx, {}, ref.dx);
        expect_near("dweight", results.dweight, {}, ref.dweight);
        expect_near("dbias", results.dbias, {}, ref.dbias);
    }
    cuda_emulation::settings() = {};
}

TEST(CudaNorm, NoRowsAndNoColumns) {
    const Case c{0, 5, true};
    Inputs<float, float> in(c);
    const DeviceArray<float> dweight("dweight", 5), dbias("dbias", 5), none("none", 0);
    const DeviceArray<float> weight("weight", in.weight.elements);
    const DeviceArray<float> workspace("workspace", cuda::norm_backward_workspace(0, 5));
    const auto empty = contiguous_view("empty", none.data(), DType::kFloat32, {0, 5});
    NormBackward backward;
    backward.dx = empty;
    backward.dweight = view("dweight", dweight, 0);
    backward.dbias = view("dbias", dbias, 0);
    backward.dout = backward.x = empty;
    backward.weight = view("weight", weight, 0);
    backward.mean = backward.rstd = view("mean", none, 0);
    backward.workspace = view("workspace", workspace, 0);
    cuda::norm_backward(backward, nullptr);
    EXPECT_EQ(dweight.values(), std::vector<float>(5));  // a sum over no rows
    EXPECT_EQ(dbias.values(), std::vector<float>(5));
    NormForward forward;
    forward.out = empty;
    forward.mean = backward.mean;
    forward.rstd = backward.rstd;
    forward.x = empty;
    forward.weight = backward.weight;
    const auto launches = cuda_emulation::counters().launches;
    cuda::norm_forward(forward, nullptr);
    EXPECT_EQ(cuda_emulation::counters().launches, launches);
}

TEST(CudaNorm, FaultsNameTheTensor) {
    const Case c{4, 8, true};
    Inputs<float, float> in(c);
    Buffer<float> wrong("weight", {7});
    NormForward args;
    args.out = in.dout.tensor;
    args.x = in.x.tensor;
    args.weight = wrong.tensor;
    expect_error([&] { cuda::norm_forward(args, nullptr); }, "expected shape [8], found weight");
    NormBackward backward;
    backward.dx = in.x.tensor;
    backward.dweight = in.weight.tensor;
    Buffer<float> rstd("rstd", {4});
    backward.dout = in.dout.tensor;
    backward.x = in.x.tensor;
    backward.weight = in.weight.tensor;
    backward.rstd = rstd.tensor;
    backward.workspace = wrong.tensor;
    expect_error([&] { cuda::norm_backward(backward, nullptr); }, "expected shape [");
}

}  // namespace
}  // namespace megacore
