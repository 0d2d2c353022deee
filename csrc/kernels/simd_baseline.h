/// Vec for the portable baseline: four lanes of the compiler's vector extension (SSE2 on x86-64,
/// NEON on AArch64). Included by kernels/simd.h only.
#pragma once

#include <cmath>

namespace megacore::cpu::MEGACORE_ISA {

struct Vec {
    static constexpr int kWidth = 4;
    using Lanes [[gnu::vector_size(16)]] = float;
    Lanes lanes;

    static Vec zero() { return {Lanes{}}; }
    static Vec broadcast(float value) { return {Lanes{value, value, value, value}}; }

    static Vec load(const float* source) {
        Vec result;
        std::memcpy(&result.lanes, source, sizeof(result.lanes));
        return result;
    }
    template <class T>
    static Vec load(const T* source) {
        return {Lanes{
            to_float(source[0]), to_float(source[1]), to_float(source[2]), to_float(source[3])}};
    }

    void store(float* target) const { std::memcpy(target, &lanes, sizeof(lanes)); }
    template <class T>
    void store(T* target) const {
        for (int i = 0; i < kWidth; ++i) target[i] = from_float<T>(lanes[i]);
    }

    friend Vec operator+(Vec a, Vec b) { return {a.lanes + b.lanes}; }
    friend Vec operator-(Vec a, Vec b) { return {a.lanes - b.lanes}; }
    friend Vec operator*(Vec a, Vec b) { return {a.lanes * b.lanes}; }
    friend Vec operator/(Vec a, Vec b) { return {a.lanes / b.lanes}; }

    /// a * b + c, rounded twice: the baseline has no fused instruction.
    static Vec fma(Vec a, Vec b, Vec c) { return {a.lanes * b.lanes + c.lanes}; }
    Vec sqrt() const {
        return {Lanes{__builtin_sqrtf(lanes[0]),
                      __builtin_sqrtf(lanes[1]),
                      __builtin_sqrtf(lanes[2]),
                      __builtin_sqrtf(lanes[3])}};
    }
    /// The larger and the smaller; `b` where one of them is NaN.
    static Vec max(Vec a, Vec b) { return if_less(b, a, a, b); }
    static Vec min(Vec a, Vec b) { return if_less(a, b, a, b); }
    /// Per lane: a < b ? then : otherwise
    static Vec if_less(Vec a, Vec b, Vec then, Vec otherwise) {
        return {a.lanes < b.lanes ? then.lanes : otherwise.lanes};
    }
    /// 2^n, where the lanes of `shifted` are 1.5 * 2^23 + n with -127 < n < 128.
    static Vec power_of_two(Vec shifted) {
        using Bits [[gnu::vector_size(16)]] = std::uint32_t;
        return {std::bit_cast<Lanes>((std::bit_cast<Bits>(shifted.lanes) << 23) + 0x3f800000u)};
    }
    /// Lanes 1, 0, 3, 2, 5, 4, ...
    Vec swapped_pairs() const { return {Lanes{lanes[1], lanes[0], lanes[3], lanes[2]}}; }
    float sum() const { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }
};

}  // namespace megacore::cpu::MEGACORE_ISA
