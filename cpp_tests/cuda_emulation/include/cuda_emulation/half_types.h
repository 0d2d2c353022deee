/// __half and __nv_bfloat16 as one class template, with their operators and pairs.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_emulation/atomics.h"
#include "cuda_emulation/small_float.h"
#include "cuda_emulation/vector_types.h"

namespace cuda_emulation {

/// A 16-bit number. Arithmetic is float32 with the result rounded, as on the device.
template <class FormatType>
class SmallFloat {
public:
    using Format = FormatType;

    SmallFloat() = default;
    template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
    CUDA_EMULATION_UNCHECKED SmallFloat(Number value)
        : bits_(static_cast<std::uint16_t>(Format::encode(static_cast<double>(value)))) {}

    CUDA_EMULATION_UNCHECKED operator float() const { return Format::decode(bits_); }

    static SmallFloat from_bits(std::uint16_t bits) {
        SmallFloat made;
        made.bits_ = bits;
        return made;
    }
    std::uint16_t bits() const { return bits_; }

    friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return wide(a) + wide(b); }
    friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return wide(a) - wide(b); }
    friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return wide(a) * wide(b); }
    friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return wide(a) / wide(b); }
    friend SmallFloat operator-(SmallFloat a) {
        return from_bits(static_cast<std::uint16_t>(a.bits_ ^ Format::kSign));
    }
    SmallFloat& operator+=(SmallFloat other) { return *this = *this + other; }
    SmallFloat& operator-=(SmallFloat other) { return *this = *this - other; }
    SmallFloat& operator*=(SmallFloat other) { return *this = *this * other; }
    SmallFloat& operator/=(SmallFloat other) { return *this = *this / other; }
    friend bool operator==(SmallFloat a, SmallFloat b) { return wide(a) == wide(b); }
    friend bool operator!=(SmallFloat a, SmallFloat b) { return wide(a) != wide(b); }
    friend bool operator<(SmallFloat a, SmallFloat b) { return wide(a) < wide(b); }
    friend bool operator<=(SmallFloat a, SmallFloat b) { return wide(a) <= wide(b); }
    friend bool operator>(SmallFloat a, SmallFloat b) { return wide(a) > wide(b); }
    friend bool operator>=(SmallFloat a, SmallFloat b) { return wide(a) >= wide(b); }

private:
    static float wide(SmallFloat value) { return static_cast<float>(value); }

    std::uint16_t bits_;
};

/// Two of them in 4 bytes.
template <class Element>
struct alignas(4) Pair {
    Element x, y;

    friend Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
    friend Pair operator/(Pair a, Pair b) { return {a.x / b.x, a.y / b.y}; }
};

template <class Element>
CUDA_EMULATION_UNCHECKED inline Element fused(Element a, Element b, Element c) {
    return Element(
        fused_multiply_add(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)));
}

template <class T>
inline constexpr bool kIsSmall = false;
template <class Format>
inline constexpr bool kIsSmall<SmallFloat<Format>> = true;

}  // namespace cuda_emulation

// --- Functions that CUDA names alike for both types ---------------------------------------------

#define CUDA_EMULATION_SMALL                                                  \
    template <class T, class = std::enable_if_t<cuda_emulation::kIsSmall<T>>> \
    __forceinline__

CUDA_EMULATION_SMALL T __hadd(T a, T b) { return a + b; }
CUDA_EMULATION_SMALL T __hsub(T a, T b) { return a - b; }
CUDA_EMULATION_SMALL T __hmul(T a, T b) { return a * b; }
CUDA_EMULATION_SMALL T __hdiv(T a, T b) { return a / b; }
CUDA_EMULATION_SMALL T __hneg(T a) { return -a; }
CUDA_EMULATION_SMALL T __hfma(T a, T b, T c) { return cuda_emulation::fused(a, b, c); }
CUDA_EMULATION_SMALL T __habs(T a) {
    return T::from_bits(static_cast<std::uint16_t>(a.bits() & ~T::Format::kSign));
}
/// A NaN loses against a number.
CUDA_EMULATION_SMALL T __hmax(T a, T b) {
    return T(fmaxf(static_cast<float>(a), static_cast<float>(b)));
}
CUDA_EMULATION_SMALL T __hmin(T a, T b) {
    return T(fminf(static_cast<float>(a), static_cast<float>(b)));
}
CUDA_EMULATION_SMALL bool __heq(T a, T b) { return a == b; }
CUDA_EMULATION_SMALL bool __hne(T a, T b) { return a != b; }
CUDA_EMULATION_SMALL bool __hlt(T a, T b) { return a < b; }
CUDA_EMULATION_SMALL bool __hle(T a, T b) { return a <= b; }
CUDA_EMULATION_SMALL bool __hgt(T a, T b) { return a > b; }
CUDA_EMULATION_SMALL bool __hge(T a, T b) { return a >= b; }
CUDA_EMULATION_SMALL bool __hisnan(T a) { return a != a; }
CUDA_EMULATION_SMALL int __hisinf(T a) {
    const float value = a;
    return value == HUGE_VALF ? 1 : value == -HUGE_VALF ? -1 : 0;
}
CUDA_EMULATION_SMALL T hexp(T a) { return T(std::exp(double{static_cast<float>(a)})); }
CUDA_EMULATION_SMALL T hlog(T a) { return T(std::log(double{static_cast<float>(a)})); }
CUDA_EMULATION_SMALL T hsqrt(T a) { return T(std::sqrt(double{static_cast<float>(a)})); }
CUDA_EMULATION_SMALL T hrsqrt(T a) { return T(1.0 / std::sqrt(double{static_cast<float>(a)})); }

CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hadd2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b) {
    return a + b;
}
CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hsub2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b) {
    return a - b;
}
CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hmul2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b) {
    return a * b;
}
CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hfma2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b,
                                                     cuda_emulation::Pair<T> c) {
    return {cuda_emulation::fused(a.x, b.x, c.x), cuda_emulation::fused(a.y, b.y, c.y)};
}
CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hmax2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b) {
    return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
CUDA_EMULATION_SMALL cuda_emulation::Pair<T> __hmin2(cuda_emulation::Pair<T> a,
                                                     cuda_emulation::Pair<T> b) {
    return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}

#undef CUDA_EMULATION_SMALL
