/// Floating-point formats of 8 and 16 bits: exact decoding, encoding to nearest even.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda_emulation/keywords.h"

namespace cuda_emulation {

/// Sign, `kExponent` bits, `kMantissa` bits. kInfinity: the highest exponent holds infinities and
/// NaNs as in IEEE; otherwise (E4M3) only the code with all bits set is a NaN.
template <int kExponent, int kMantissa, bool kInfinity>
struct SmallFormat {
    static constexpr int kBits = 1 + kExponent + kMantissa;
    static constexpr int kBias = (1 << (kExponent - 1)) - 1;
    static constexpr std::uint32_t kSign = 1u << (kBits - 1);
    static constexpr std::uint32_t kTopExponent = ((1u << kExponent) - 1u) << kMantissa;
    static constexpr std::uint32_t kNan = kSign - 1u;  // the one that the device produces
    static constexpr std::uint32_t kLargest = (kInfinity ? kTopExponent : kNan) - 1u;

    CUDA_EMULATION_UNCHECKED static float decode(std::uint32_t bits) {
        const std::uint32_t magnitude = bits & (kSign - 1u);
        const double sign = bits & kSign ? -1.0 : 1.0;
        if (kInfinity ? magnitude > kTopExponent : magnitude == kNan) {
            return std::numeric_limits<float>::quiet_NaN();
        }
        if (kInfinity && magnitude == kTopExponent) {
            return static_cast<float>(sign * std::numeric_limits<double>::infinity());
        }
        const int exponent = static_cast<int>(magnitude >> kMantissa);
        const int mantissa = static_cast<int>(magnitude & ((1u << kMantissa) - 1u));
        const double value =
            exponent == 0 ? std::ldexp(mantissa, 1 - kBias - kMantissa)
                          : std::ldexp(mantissa + (1 << kMantissa), exponent - kBias - kMantissa);
        return static_cast<float>(sign * value);
    }

    /// Overflow becomes infinity (NaN in E4M3), or the largest finite number when `saturate`.
    CUDA_EMULATION_UNCHECKED static std::uint32_t encode(double value, bool saturate = false) {
        if (std::isnan(value)) return kNan;
        const std::uint32_t sign = std::signbit(value) ? kSign : 0u;
        const double magnitude = std::fabs(value);
        const std::uint32_t overflow = saturate ? kLargest : (kInfinity ? kTopExponent : kNan);
        if (std::isinf(magnitude)) return sign | overflow;
        if (magnitude == 0.0) return sign;
        // The unit of the last place; subnormals share that of the smallest normal number.
        const int exponent = std::max(std::ilogb(magnitude), 1 - kBias);
        const double units = std::nearbyint(std::ldexp(magnitude, kMantissa - exponent));
        const auto steps = static_cast<std::uint64_t>(units);
        // A carry out of the mantissa moves into the exponent by itself.
        const std::uint64_t code =
            (static_cast<std::uint64_t>(exponent - 1 + kBias) << kMantissa) + steps;
        return sign | (code > kLargest ? overflow : static_cast<std::uint32_t>(code));
    }
};

using BFloat16Format = SmallFormat<8, 7, true>;
using HalfFormat = SmallFormat<5, 10, true>;
using E4M3Format = SmallFormat<4, 3, false>;
using E5M2Format = SmallFormat<5, 2, true>;

/// a b + c with one rounding to odd at double's precision, so that rounding it once more to 16 bits
/// is as good as rounding the exact value. a b must be exact, as products of 16-bit formats are.
inline double fused_multiply_add(double a, double b, double c) {
    const double product = a * b;
    const double sum = product + c;
    const double of_c = sum - product;
    const double error = (product - (sum - of_c)) + (c - of_c);
    if (error == 0.0 || !std::isfinite(sum)) return sum;
    if (std::bit_cast<std::uint64_t>(sum) & 1u) return sum;
    return std::nextafter(sum, error > 0.0 ? HUGE_VAL : -HUGE_VAL);
}

}  // namespace cuda_emulation
