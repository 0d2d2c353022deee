/// Element types of tensors, and the two 16-bit floating-point formats as storage types.
#pragma once

#include <bit>
#include <cstdint>

namespace megacore {

enum class DType : std::uint8_t {
    kFloat32,
    kBFloat16,
    kFloat16,
    kFloat64,
    kInt32,
    kInt64,
    kBool,
    kFloat8E4M3,
    kFloat8E5M2
};

/// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::kBool:
            return 1;
        case DType::kFloat8E4M3:
        case DType::kFloat8E5M2:
            return 1;
        case DType::kBFloat16:
        case DType::kFloat16:
            return 2;
        case DType::kFloat32:
        case DType::kInt32:
            return 4;
        case DType::kFloat64:
        case DType::kInt64:
            return 8;
    }
    return 0;
}

/// Name as users know it, such as "bfloat16".
constexpr const char* name_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kFloat16:
            return "float16";
        case DType::kFloat64:
            return "float64";
        case DType::kInt32:
            return "int32";
        case DType::kInt64:
            return "int64";
        case DType::kBool:
            return "bool";
        case DType::kFloat8E4M3:
            return "float8_e4m3fn";
        case DType::kFloat8E5M2:
            return "float8_e5m2";
    }
    return "unknown";
}

/// Upper half of an IEEE float32.
struct BFloat16 {
    std::uint16_t bits;
};

/// IEEE binary16.
struct Float16 {
    std::uint16_t bits;
};

constexpr float to_float(float value) { return value; }

constexpr float to_float(BFloat16 value) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

constexpr float to_float(Float16 value) {
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity and NaN keep their payload
        return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude < 0x0400u) {  // zero and subnormals: exact in float32 as multiples of 2^-24
        const float scaled = static_cast<float>(magnitude) * 0x1p-24f;
        return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
    }
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

/// Conversion from float32, rounding to nearest even. NaN stays NaN (quiet).
template <class T>
constexpr T from_float(float value);

template <>
constexpr float from_float<float>(float value) {
    return value;
}

template <>
constexpr BFloat16 from_float<BFloat16>(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
    }
    return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
constexpr Float16 from_float<Float16>(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
    }
    if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
        return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    }
    if (magnitude < 0x38800000u) {
        // Subnormal result: adding 0.5 makes the float adder itself round at 2^-24.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        const std::uint32_t rounded = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
        return {static_cast<std::uint16_t>(sign | rounded)};
    }
    const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

/// DType of a C++ element type.
template <class T>
inline constexpr DType kDTypeOf = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::kFloat16;
template <>
inline constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
inline constexpr DType kDTypeOf<std::int32_t> = DType::kInt32;
template <>
inline constexpr DType kDTypeOf<std::int64_t> = DType::kInt64;

/// Passed to a visitor in place of a type.
template <class T>
struct TypeTag {
    using type = T;
};

}  // namespace megacore
