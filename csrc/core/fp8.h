/// The two 8-bit floating-point formats: bit patterns from float32, and back.
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1.
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"

namespace megacore {

/// E4M3 has no infinity and one NaN pattern a sign; E5M2 is the upper half of IEEE binary16.
enum class Fp8Format : std::uint8_t { kE4M3, kE5M2 };

/// Largest finite value.
constexpr float fp8_max(Fp8Format format) { return format == Fp8Format::kE4M3 ? 448.0f : 57344.0f; }

/// The nearest value, ties to even; beyond the largest finite one, that one. NaN stays NaN.
/// Without branches, so that loops over it become vector code.
template <Fp8Format kFormat>
constexpr std::uint8_t to_fp8(float value) {
    constexpr bool kE4M3 = kFormat == Fp8Format::kE4M3;
    constexpr int kDropped = kE4M3 ? 20 : 21;  // mantissa bits that go
    constexpr std::uint32_t kLargest = std::bit_cast<std::uint32_t>(fp8_max(kFormat));
    constexpr std::uint32_t kNormal = kE4M3 ? 0x3c800000u : 0x38800000u;  // 2^-6, 2^-14
    constexpr std::uint32_t kBias = (kE4M3 ? 127 - 7 : 127 - 15) << 23;
    constexpr float kMagic = kE4M3 ? 0x1p14f : 0x1p7f;  // its unit is the smallest subnormal
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 24) & 0x80u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const std::uint32_t clamped = magnitude < kLargest ? magnitude : kLargest;
    const std::uint32_t half = (1u << (kDropped - 1)) - 1 + ((clamped >> kDropped) & 1u);
    const std::uint32_t normal = (clamped + half - kBias) >> kDropped;
    const std::uint32_t subnormal =
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(clamped) + kMagic) -
        std::bit_cast<std::uint32_t>(kMagic);
    std::uint32_t code = clamped < kNormal ? subnormal : normal;
    code = magnitude > 0x7f800000u ? 0x7fu : code;
    return static_cast<std::uint8_t>(sign | code);
}

/// The power of two that brings a block whose largest magnitude has the bits `amax` nearest below
/// the largest finite value, as its exponent; 0 for a block of zeros. Products with powers of two
/// are exact.
MEGACORE_HOST_DEVICE constexpr int fp8_block_exponent(Fp8Format format, std::uint32_t amax) {
    const std::uint32_t bits = amax & 0x7fffffffu;
    if (bits == 0) return 0;
    const std::uint32_t largest = format == Fp8Format::kE4M3 ? 0x43e00000u : 0x47600000u;
    const int difference = static_cast<int>(largest >> 23) - static_cast<int>(bits >> 23);
    const int exponent = difference - ((bits & 0x7fffffu) > (largest & 0x7fffffu) ? 1 : 0);
    return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
}

/// The bits of 2^exponent, which lies in [-126, 127].
MEGACORE_HOST_DEVICE constexpr std::uint32_t power_of_two_bits(int exponent) {
    return static_cast<std::uint32_t>(exponent + 127) << 23;
}

}  // namespace megacore
