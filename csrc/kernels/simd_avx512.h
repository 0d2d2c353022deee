/// Vec for AVX-512 (F, BW, DQ, VL). Included by kernels/simd.h only.
#pragma once

#include <immintrin.h>

namespace megacore::cpu::MEGACORE_ISA {

struct Vec {
    static constexpr int kWidth = 16;
    __m512 lanes;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }

    static Vec load(const float* source) { return {_mm512_loadu_ps(source)}; }
    static Vec load(const BFloat16* source) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
    }
    static Vec load(const Float16* source) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)))};
    }

    void store(float* target) const { _mm512_storeu_ps(target, lanes); }
    void store(BFloat16* target) const {
        // Not vcvtneps2bf16: that instruction flushes subnormal numbers to zero.
        const __m512i bits = _mm512_castps_si512(lanes);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
        const __m512i quiet =
            _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x0040));
        const __mmask16 nan = _mm512_cmp_ps_mask(lanes, lanes, _CMP_UNORD_Q);
        const __m512i result = _mm512_mask_mov_epi32(rounded, nan, quiet);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_cvtepi32_epi16(result));
    }
    void store(Float16* target) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                            _mm512_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }

    /// a * b + c
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
    Vec sqrt() const { return {_mm512_sqrt_ps(lanes)}; }
    /// The larger and the smaller; `b` where one of them is NaN.
    static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
    static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
    /// Per lane: a < b ? then : otherwise
    static Vec if_less(Vec a, Vec b, Vec then, Vec otherwise) {
        const __mmask16 mask = _mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_LT_OQ);
        return {_mm512_mask_blend_ps(mask, otherwise.lanes, then.lanes)};
    }
    /// 2^n, where the lanes of `shifted` are 1.5 * 2^23 + n with -127 < n < 128.
    static Vec power_of_two(Vec shifted) {
        const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.lanes), 23);
        return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000)))};
    }
    /// Lanes 1, 0, 3, 2, 5, 4, ...
    Vec swapped_pairs() const { return {_mm512_permute_ps(lanes, 0xb1)}; }
    float sum() const { return _mm512_reduce_add_ps(lanes); }
};

}  // namespace megacore::cpu::MEGACORE_ISA
