/// Device arithmetic that the host's <cmath> lacks. The fast versions (__expf, ...) are as exact
/// as the host's, where a GPU's are not: nothing that needs their error is tested here.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "cuda_emulation/keywords.h"

// --- Bits ---------------------------------------------------------------------------------------

__forceinline__ int __float_as_int(float value) { return std::bit_cast<int>(value); }
__forceinline__ unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
__forceinline__ float __int_as_float(int value) { return std::bit_cast<float>(value); }
__forceinline__ float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
__forceinline__ long long __double_as_longlong(double value) {
    return std::bit_cast<long long>(value);
}
__forceinline__ double __longlong_as_double(long long value) {
    return std::bit_cast<double>(value);
}

__forceinline__ int __popc(unsigned value) { return std::popcount(value); }
__forceinline__ int __popcll(unsigned long long value) { return std::popcount(value); }
__forceinline__ int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
__forceinline__ int __clzll(long long value) {
    return std::countl_zero(static_cast<unsigned long long>(value));
}
/// Position of the lowest set bit counted from 1; 0 when there is none.
__forceinline__ int __ffs(int value) { return __builtin_ffs(value); }
__forceinline__ int __ffsll(long long value) { return __builtin_ffsll(value); }

__forceinline__ unsigned __brev(unsigned value) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= ((value >> bit) & 1u) << (31 - bit);
    return reversed;
}

/// Four bytes picked from the eight of (y, x) by the nibbles of the selector; bit 3 of a nibble
/// repeats the byte's sign.
__forceinline__ unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t both = static_cast<std::uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (int byte = 0; byte < 4; ++byte) {
        const unsigned nibble = selector >> (4 * byte) & 0xfu;
        unsigned picked = static_cast<unsigned>(both >> (8 * (nibble & 7u))) & 0xffu;
        if (nibble & 8u) picked = picked & 0x80u ? 0xffu : 0u;
        result |= picked << (8 * byte);
    }
    return result;
}

/// The upper half of (high, low) shifted left; the shift counts modulo 32.
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both << (shift & 31u) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both >> (shift & 31u));
}

// --- Integers -----------------------------------------------------------------------------------

__forceinline__ int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<std::int64_t>(a) * b >> 32);
}
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

#define CUDA_EMULATION_MIN_MAX(T)                                       \
    __forceinline__ constexpr T min(T a, T b) { return b < a ? b : a; } \
    __forceinline__ constexpr T max(T a, T b) { return a < b ? b : a; }
CUDA_EMULATION_MIN_MAX(int)
CUDA_EMULATION_MIN_MAX(unsigned)
CUDA_EMULATION_MIN_MAX(long)
CUDA_EMULATION_MIN_MAX(unsigned long)
CUDA_EMULATION_MIN_MAX(long long)
CUDA_EMULATION_MIN_MAX(unsigned long long)
#undef CUDA_EMULATION_MIN_MAX
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }

// --- Floating point -----------------------------------------------------------------------------

__forceinline__ float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(double{x})); }
__forceinline__ double rsqrt(double x) { return 1.0 / std::sqrt(x); }
__forceinline__ float normcdff(float x) {
    return static_cast<float>(0.5 * std::erfc(double{x} * -0.70710678118654752440));
}
__forceinline__ void sincospif(float x, float* sine, float* cosine) {
    constexpr double kPi = 3.14159265358979323846;
    *sine = static_cast<float>(std::sin(kPi * x));
    *cosine = static_cast<float>(std::cos(kPi * x));
}

__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __frcp_rn(float a) { return 1.0f / a; }
__forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
__forceinline__ float __frsqrt_rn(float a) { return rsqrtf(a); }

__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __expf(float x) { return expf(x); }
__forceinline__ float __exp10f(float x) { return powf(10.0f, x); }
__forceinline__ float __logf(float x) { return logf(x); }
__forceinline__ float __log2f(float x) { return log2f(x); }
__forceinline__ float __log10f(float x) { return log10f(x); }
__forceinline__ float __powf(float x, float y) { return powf(x, y); }
__forceinline__ float __sinf(float x) { return sinf(x); }
__forceinline__ float __cosf(float x) { return cosf(x); }
__forceinline__ void __sincosf(float x, float* sine, float* cosine) {
    *sine = sinf(x);
    *cosine = cosf(x);
}
/// NaN becomes 0.
__forceinline__ float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

/// Conversions saturate and turn NaN into 0, as the device's do.
template <class Integer>
__forceinline__ Integer cuda_emulation_to_integer(double rounded) {
    if (rounded != rounded) return 0;
    if (rounded <= static_cast<double>(std::numeric_limits<Integer>::min())) {
        return std::numeric_limits<Integer>::min();
    }
    if (rounded >= static_cast<double>(std::numeric_limits<Integer>::max())) {
        return std::numeric_limits<Integer>::max();
    }
    return static_cast<Integer>(rounded);
}
__forceinline__ int __float2int_rn(float x) {
    return cuda_emulation_to_integer<int>(std::nearbyint(x));
}
__forceinline__ int __float2int_rz(float x) {
    return cuda_emulation_to_integer<int>(std::trunc(x));
}
__forceinline__ int __float2int_rd(float x) {
    return cuda_emulation_to_integer<int>(std::floor(x));
}
__forceinline__ int __float2int_ru(float x) { return cuda_emulation_to_integer<int>(std::ceil(x)); }
__forceinline__ unsigned __float2uint_rn(float x) {
    return cuda_emulation_to_integer<unsigned>(std::nearbyint(x));
}
__forceinline__ unsigned __float2uint_rz(float x) {
    return cuda_emulation_to_integer<unsigned>(std::trunc(x));
}
__forceinline__ float __int2float_rn(int x) { return static_cast<float>(x); }
__forceinline__ float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// --- Loads and stores with a cache hint ---------------------------------------------------------

template <class T>
__forceinline__ T __ldg(const T* source) {
    return *source;
}
template <class T>
__forceinline__ T __ldca(const T* source) {
    return *source;
}
template <class T>
__forceinline__ T __ldcg(const T* source) {
    return *source;
}
template <class T>
__forceinline__ T __ldcs(const T* source) {
    return *source;
}
template <class T>
__forceinline__ T __ldlu(const T* source) {
    return *source;
}
template <class T>
__forceinline__ T __ldcv(const T* source) {
    return *static_cast<const volatile T*>(source);
}
template <class T>
__forceinline__ void __stwb(T* target, T value) {
    *target = value;
}
template <class T>
__forceinline__ void __stcg(T* target, T value) {
    *target = value;
}
template <class T>
__forceinline__ void __stcs(T* target, T value) {
    *target = value;
}
template <class T>
__forceinline__ void __stwt(T* target, T value) {
    *target = value;
}
