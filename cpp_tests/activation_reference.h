/// Closed forms of kernels/activation.h in float64, for the tests of the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/activation.h"
#include "support.h"

namespace megacore::testing {

inline constexpr Activation kActivations[] = {Activation::kGeluTanh,
                                              Activation::kGeluErf,
                                              Activation::kGeluQuick,
                                              Activation::kSilu,
                                              Activation::kSquaredRelu};

struct ValueAndSlope {
    double value;
    double slope;
};

inline ValueAndSlope activation_value(Activation activation, double z) {
    const auto by_sigmoid = [z](double y, double dy) -> ValueAndSlope {
        const double s = 1.0 / (1.0 + std::exp(-y));
        return {z * s, s + z * s * (1.0 - s) * dy};
    };
    switch (activation) {
        case Activation::kGeluTanh: {
            const double two = 2.0 * std::sqrt(2.0 / M_PI);
            return by_sigmoid(two * (z + 0.044715 * z * z * z), two * (1 + 3 * 0.044715 * z * z));
        }
        case Activation::kGeluErf: {
            const double below = 0.5 * std::erfc(-z / std::sqrt(2.0));
            return {z * below, below + z * std::exp(-0.5 * z * z) / std::sqrt(2.0 * M_PI)};
        }
        case Activation::kGeluQuick:
            return by_sigmoid(1.702 * z, 1.702);
        case Activation::kSilu:
            return by_sigmoid(z, 1.0);
        case Activation::kSquaredRelu:
            break;
    }
    const double positive = std::max(z, 0.0);
    return {positive * positive, 2.0 * positive};
}

struct Expectation {
    std::vector<double> values;
    std::vector<double> bounds;

    /// One rounding to T, and float32 roundings of terms of `size`.
    template <class T>
    void add(double value, double size) {
        values.push_back(value);
        bounds.push_back(rounding_error<T>(value) + 0x1p-24 * size + 1e-30);
    }
};

struct ActivationExpectation {
    Expectation out, dx, dbias;
};

/// What both kernels should give; `bias` is empty for none. The bounds count the float32 roundings
/// of a value and of its slope (at most 32 of terms up to 1 + |z|), and of a sum of n terms.
template <class X>
ActivationExpectation expect_activation(const Buffer<X>& x,
                                        const Buffer<X>* bias,
                                        const Buffer<X>& dout,
                                        Activation activation,
                                        bool gated) {
    ActivationExpectation result;
    const std::int64_t rows = x.tensor.sizes[0], width = x.tensor.sizes[1];
    const std::int64_t inner = dout.tensor.sizes[1];
    std::vector<double> dbias(width), dbias_size(width);
    for (std::int64_t row = 0; row < rows; ++row) {
        const auto z = [&](std::int64_t column) {
            return x.at(row * width + column) + (bias == nullptr ? 0.0 : bias->at(column));
        };
        for (std::int64_t i = 0; i < inner; ++i) {
            const ValueAndSlope f = activation_value(activation, z(i));
            const double gate = gated ? z(inner + i) : 1.0;
            const double size = 32 * (1 + std::abs(z(i)) + f.value) * std::max(1.0, std::abs(gate));
            result.out.add<X>(f.value * gate, size);
        }
        for (std::int64_t i = 0; i < width; ++i) {
            const std::int64_t at = i < inner ? i : i - inner;
            const ValueAndSlope f = activation_value(activation, z(at));
            const double gate = gated ? z(inner + at) : 1.0;
            const double gradient = dout.at(row * inner + at);
            const double value = gradient * (i < inner ? gate * f.slope : f.value);
            const double size = 32 * std::abs(gradient) * (1 + std::abs(z(at)) + f.value) *
                                std::max(1.0, std::abs(gate));
            result.dx.add<X>(value, size);
            dbias[i] += value;
            dbias_size[i] += size + std::sqrt(static_cast<double>(rows)) * std::abs(value);
        }
    }
    for (std::int64_t i = 0; i < width; ++i) result.dbias.add<X>(dbias[i], dbias_size[i]);
    return result;
}

}  // namespace megacore::testing
