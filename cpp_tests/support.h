/// Shared by the C++ tests: random data, storage for views, a comparison that explains itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "core/tensor_view.h"

namespace megacore::testing {

/// Owns the elements of a contiguous tensor.
template <class T>
struct Buffer {
    std::vector<T> elements;
    TensorView tensor;

    Buffer(const char* name, std::initializer_list<std::int64_t> sizes) {
        std::int64_t count = 1;
        for (const std::int64_t size : sizes) count *= size;
        elements.resize(static_cast<std::size_t>(count));
        tensor = contiguous_view(name, elements.data(), kDTypeOf<T>, sizes);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    /// Normal numbers with the given mean, rounded to T.
    void fill_normal(unsigned seed, float mean = 0.0f) {
        std::mt19937 engine(seed);
        std::normal_distribution<float> distribution(mean, 1.0f);
        for (T& element : elements) element = from_float<T>(distribution(engine));
    }

    double at(std::int64_t i) const { return to_float(elements[static_cast<std::size_t>(i)]); }
};

/// Half a unit in the last place of T relative to the value.
template <class T>
constexpr double rounding_of() {
    return kDTypeOf<T> == DType::kFloat32   ? 0x1p-24
           : kDTypeOf<T> == DType::kFloat16 ? 0x1p-11
                                            : 0x1p-8;
}

/// Largest error of rounding `value` to T, also where T has only subnormal numbers left.
template <class T>
double rounding_error(double value) {
    const double subnormal = kDTypeOf<T> == DType::kFloat16 ? 0x1p-25 : 0x1p-134;
    return std::max(rounding_of<T>() * std::abs(value), subnormal);
}

/// Compares element i with expected[i] within bounds[i]; reports how many differ, the first, and
/// the largest error as a share of its bound.
template <class T>
void expect_close(const Buffer<T>& actual,
                  const std::vector<double>& expected,
                  const std::vector<double>& bounds) {
    ASSERT_EQ(actual.elements.size(), expected.size());
    std::size_t count = 0;
    std::size_t first = 0;
    double worst = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double error = std::abs(actual.at(static_cast<std::int64_t>(i)) - expected[i]);
        const double share = error / bounds[i];
        if (!(share <= 1.0)) {
            if (count++ == 0) first = i;
        }
        worst = std::max(worst, std::isnan(share) ? INFINITY : share);
    }
    EXPECT_EQ(count, 0u) << actual.tensor.name << ": " << count << " of " << expected.size()
                         << " elements differ, the first at " << first << ": "
                         << actual.at(static_cast<std::int64_t>(first)) << " instead of "
                         << expected[first] << "; largest error is " << worst << " of its bound";
}

/// The instruction sets this machine can run, for loops over all compiled versions.
inline std::vector<Isa> runnable_isas() {
    std::vector<Isa> isas;
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
        if (isa <= detected_isa()) isas.push_back(isa);
    }
    return isas;
}

/// Restores the active instruction set.
class IsaScope {
public:
    explicit IsaScope(Isa isa) { use_isa(isa); }
    ~IsaScope() { use_isa(detected_isa()); }
};

/// Expects that `call` throws megacore::Error with `text` in its message.
template <class Call>
void expect_error(const Call& call, const std::string& text) {
    try {
        call();
        ADD_FAILURE() << "nothing was thrown, expected a message with: " << text;
    } catch (const std::runtime_error& error) {
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
}

}  // namespace megacore::testing
