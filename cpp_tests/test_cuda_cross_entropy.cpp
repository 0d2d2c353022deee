// The CUDA kernels of cross_entropy.h under the emulation: against float64 closed forms, under
// several orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <limits>

#include "cross_entropy_reference.h"
#include "runtime/emulator.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using testing::CrossEntropyCase;
using testing::CrossEntropyProblem;
using testing::kCrossEntropyCases;

constexpr unsigned kSeeds = 3;

template <class T>
TensorView on_device(const DeviceArray<T>& array, const TensorView& host) {
    TensorView result = host;
    result.data = array.data();
    return result;
}

template <class X>
void run(CrossEntropyProblem<X>& p) {
    const std::size_t rows = p.label_values.size();
    const std::size_t offset = p.c.offset * sizeof(X);
    const DeviceArray<X> logits("logits", p.logits.elements, offset);
    const DeviceArray<X> dlogits("dlogits", p.dlogits.elements.size(), offset);
    const DeviceArray<std::int64_t> labels("labels", p.label_values);
    const DeviceArray<float> largest("largest", rows), total("total", rows);
    const DeviceArray<float> chosen("chosen", rows), sum("sum", rows);
    const DeviceArray<float> factor("factor", p.factor.elements);
    const DeviceArray<float> at_label("at_label", p.at_label.elements);
    const DeviceArray<float> uniform("uniform", p.uniform.elements);
    CrossEntropyForward forward = p.forward_args();
    forward.largest = on_device(largest, forward.largest);
    forward.total = on_device(total, forward.total);
    forward.chosen = on_device(chosen, forward.chosen);
    if (p.c.with_sum) forward.sum = on_device(sum, forward.sum);
    forward.logits = on_device(logits, forward.logits);
    forward.labels = on_device(labels, forward.labels);
    cuda::cross_entropy_forward(forward, nullptr);
    CrossEntropyBackward backward = p.backward_args();
    backward.dlogits = on_device(dlogits, backward.dlogits);
    backward.logits = forward.logits;
    backward.labels = forward.labels;
    backward.largest = forward.largest;
    backward.factor = on_device(factor, backward.factor);
    backward.at_label = on_device(at_label, backward.at_label);
    if (p.c.with_sum) backward.uniform = on_device(uniform, backward.uniform);
    cuda::cross_entropy_backward(backward, nullptr);
    p.largest.elements = largest.values();
    p.total.elements = total.values();
    p.chosen.elements = chosen.values();
    if (p.c.with_sum) p.sum.elements = sum.values();
    p.dlogits.elements = dlogits.values();
}

template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
    return std::memcmp(a.elements.data(), b.elements.data(), a.elements.size() * sizeof(T)) == 0;
}

template <class X>
void check_all_cases() {
    for (const CrossEntropyCase& c : kCrossEntropyCases) {
        SCOPED_TRACE(::testing::Message() << "[" << c.rows << ", " << c.columns << "]");
        CrossEntropyProblem<X> p(c);
        cuda_emulation::settings() = {.seed = 0};
        run(p);
        p.expect_result();
        for (unsigned seed = 1; seed < kSeeds; ++seed) {
            CrossEntropyProblem<X> other(c);
            cuda_emulation::settings().seed = seed;
            run(other);
            EXPECT_TRUE(same_bits(p.total, other.total) && same_bits(p.sum, other.sum) &&
                        same_bits(p.dlogits, other.dlogits))
                << "seed " << seed;
        }
    }
}

TEST(CudaCrossEntropy, Float32) { check_all_cases<float>(); }
TEST(CudaCrossEntropy, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CudaCrossEntropy, Float16) { check_all_cases<Float16>(); }

TEST(CudaCrossEntropy, NothingButMinusInfinity) {
    cuda_emulation::settings() = {};
    CrossEntropyProblem<float> p({2, 640});
    const float infinity = std::numeric_limits<float>::infinity();
    for (float& x : p.logits.elements) x = -infinity;
    p.logits.elements[900] = 3.0f;
    run(p);
    EXPECT_EQ(p.largest.elements, (std::vector<float>{-infinity, 3.0f}));
    EXPECT_EQ(p.total.elements, (std::vector<float>{0.0f, 1.0f}));
}

}  // namespace
}  // namespace megacore
