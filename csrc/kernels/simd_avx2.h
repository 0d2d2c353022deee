/// Vec for AVX2 with FMA and F16C. Included by kernels/simd.h only.
#pragma once

#include <immintrin.h>

namespace megacore::cpu::MEGACORE_ISA {

struct Vec {
    static constexpr int kWidth = 8;
    __m256 lanes;

    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec broadcast(float value) { return {_mm256_set1_ps(value)}; }

    static Vec load(const float* source) { return {_mm256_loadu_ps(source)}; }
    static Vec load(const BFloat16* source) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
    }
    static Vec load(const Float16* source) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)))};
    }

    void store(float* target) const { _mm256_storeu_ps(target, lanes); }
    void store(BFloat16* target) const {
        const __m256i bits = _mm256_castps_si256(lanes);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
        const __m256i quiet =
            _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x0040));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(lanes, lanes, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(rounded, quiet, nan);
        // packus works within 128-bit halves; the permutation puts the two results together.
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_castsi256_si128(packed));
    }
    void store(Float16* target) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                         _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }

    /// a * b + c
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
    Vec sqrt() const { return {_mm256_sqrt_ps(lanes)}; }
    /// The larger and the smaller; `b` where one of them is NaN.
    static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
    static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }
    /// Per lane: a < b ? then : otherwise
    static Vec if_less(Vec a, Vec b, Vec then, Vec otherwise) {
        const __m256 mask = _mm256_cmp_ps(a.lanes, b.lanes, _CMP_LT_OQ);
        return {_mm256_blendv_ps(otherwise.lanes, then.lanes, mask)};
    }
    /// 2^n, where the lanes of `shifted` are 1.5 * 2^23 + n with -127 < n < 128.
    static Vec power_of_two(Vec shifted) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.lanes), 23);
        return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f800000)))};
    }
    /// Lanes 1, 0, 3, 2, 5, 4, ...
    Vec swapped_pairs() const { return {_mm256_permute_ps(lanes, 0xb1)}; }
    float sum() const {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
    }
};

}  // namespace megacore::cpu::MEGACORE_ISA
