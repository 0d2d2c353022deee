// The CUDA kernels of activation.h under the emulation: against float64 closed forms, under several
// orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "activation_reference.h"
#include "runtime/emulator.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using testing::expect_activation;
using testing::expect_close;
using testing::expect_error;
using testing::kActivations;

constexpr unsigned kSeeds = 3;

struct Case {
    std::int64_t rows;
    std::int64_t inner;
    bool gated;
    bool bias;
    std::size_t offset = 0;  // elements behind an aligned address
};

// Vectors and single elements, one block and several, chunks of several rows, unaligned memory.
const Case kCases[] = {{1, 1, false, true},
                       {3, 7, true, true},
                       {5, 64, false, false},
                       {2, 1032, true, true},
                       {9, 131, true, false},
                       {1030, 8, true, true},
                       {3, 64, false, true, 1}};

template <class T>
TensorView view(const char* name, const DeviceArray<T>& array, std::int64_t columns) {
    const auto count = static_cast<std::int64_t>(array.size());
    return contiguous_view(name, array.data(), kDTypeOf<T>, {count / columns, columns});
}

template <class T>
TensorView vector_view(const char* name, const DeviceArray<T>& array) {
    return contiguous_view(
        name, array.data(), kDTypeOf<T>, {static_cast<std::int64_t>(array.size())});
}

template <class X>
struct Problem {
    Case c;
    Activation activation;
    std::int64_t width = c.inner * (c.gated ? 2 : 1);
    Buffer<X> x{"x", {c.rows, width}}, bias{"bias", {width}};
    Buffer<X> out{"out", {c.rows, c.inner}}, dout{"dout", {c.rows, c.inner}};
    Buffer<X> dx{"dx", {c.rows, width}}, dbias{"dbias", {width}};

    Problem(const Case& c_, Activation activation_) : c(c_), activation(activation_) {
        x.fill_normal(1, 0.5f);
        bias.fill_normal(2);
        dout.fill_normal(3);
    }

    void run() {
        const std::size_t offset = c.offset * sizeof(X);
        const DeviceArray<X> x_("x", x.elements, offset), bias_("bias", bias.elements, offset);
        const DeviceArray<X> dout_("dout", dout.elements, offset);
        const DeviceArray<X> out_("out", out.elements.size(), offset);
        const DeviceArray<X> dx_("dx", dx.elements.size(), offset), dbias_("dbias", width);
        const DeviceArray<float> workspace_("workspace",
                                            cuda::activation_backward_workspace(c.rows, width));
        ActivationForward forward{.out = view("out", out_, c.inner), .x = view("x", x_, width)};
        ActivationBackward backward{.dx = view("dx", dx_, width),
                                    .dout = view("dout", dout_, c.inner),
                                    .x = view("x", x_, width)};
        if (c.bias) {
            forward.bias = backward.bias = vector_view("bias", bias_);
            backward.dbias = vector_view("dbias", dbias_);
            backward.workspace = vector_view("workspace", workspace_);
        }
        forward.activation = backward.activation = activation;
        forward.gated = backward.gated = c.gated;
        cuda::activation_forward(forward, nullptr);
        cuda::activation_backward(backward, nullptr);
        out.elements = out_.values();
        dx.elements = dx_.values();
        if (c.bias) dbias.elements = dbias_.values();
    }
};

template <class X>
bool same_bits(const Buffer<X>& a, const Buffer<X>& b) {
    return std::memcmp(a.elements.data(), b.elements.data(), a.elements.size() * sizeof(X)) == 0;
}

template <class X>
void check_all_cases() {
    for (const Case& c : kCases) {
        for (const Activation activation : kActivations) {
            SCOPED_TRACE(::testing::Message()
                         << "[" << c.rows << ", " << c.inner << "] activation "
                         << static_cast<int>(activation) << (c.gated ? ", gated" : ""));
            Problem<X> p(c, activation);
            cuda_emulation::settings() = {.seed = 0};
            p.run();
            for (unsigned seed = 1; seed < kSeeds; ++seed) {
                Problem<X> other(c, activation);
                cuda_emulation::settings().seed = seed;
                other.run();
                EXPECT_TRUE(same_bits(p.out, other.out) && same_bits(p.dx, other.dx) &&
                            same_bits(p.dbias, other.dbias))
                    << "seed " << seed;
            }
            const auto expected =
                expect_activation(p.x, c.bias ? &p.bias : nullptr, p.dout, activation, c.gated);
            expect_close(p.out, expected.out.values, expected.out.bounds);
            expect_close(p.dx, expected.dx.values, expected.dx.bounds);
            if (c.bias) expect_close(p.dbias, expected.dbias.values, expected.dbias.bounds);
        }
    }
}

TEST(CudaActivation, Float32) { check_all_cases<float>(); }
TEST(CudaActivation, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CudaActivation, Float16) { check_all_cases<Float16>(); }

TEST(CudaActivation, NoRows) {
    const DeviceArray<float> dbias("dbias", 6), none("none", 0);
    const DeviceArray<float> bias("bias", std::vector<float>(6));
    const TensorView empty = contiguous_view("x", none.data(), DType::kFloat32, {0, 6});
    ActivationForward forward{.out = empty, .x = empty};
    const auto launches = cuda_emulation::counters().launches;
    cuda::activation_forward(forward, nullptr);
    EXPECT_EQ(cuda_emulation::counters().launches, launches);
    ActivationBackward backward{.dx = empty, .dout = empty, .x = empty};
    backward.dbias = vector_view("dbias", dbias);
    backward.bias = vector_view("bias", bias);
    backward.workspace = vector_view("workspace", none);
    cuda::activation_backward(backward, nullptr);
    EXPECT_EQ(dbias.values(), std::vector<float>(6));  // a sum over no rows
    backward.workspace = vector_view("workspace", bias);
    expect_error([&] { cuda::activation_backward(backward, nullptr); }, "workspace");
}

}  // namespace
}  // namespace megacore
