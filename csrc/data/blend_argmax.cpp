#include "data/blend_argmax.h"

#include <algorithm>
#include <bit>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace megacore::data {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double place_number(std::int64_t i) { return std::max(static_cast<double>(i), 1.0); }

inline void leave_if_spent(const BlendState& state, std::int64_t chosen, double count) {
    if (count == state.limits[chosen]) [[unlikely]]
        state.counts[chosen] = kInfinity;
}

}  // namespace

void blend_steps_portable(const BlendState& state,
                          std::int64_t begin,
                          std::int64_t size,
                          std::int16_t* dataset,
                          std::int64_t* sample) {
    const std::size_t padded = state.blocks * kBlendBlock;
    for (std::int64_t i = 0; i < size; ++i) {
        const double m = place_number(begin + i);
        double best = -kInfinity;
        std::size_t chosen = 0;
        for (std::size_t d = 0; d < padded; ++d) {
            const double error = state.weights[d] * m - state.counts[d];
            if (error > best) {
                best = error;
                chosen = d;
            }
        }
        dataset[i] = static_cast<std::int16_t>(chosen);
        sample[i] = static_cast<std::int64_t>(state.counts[chosen]);
        state.counts[chosen] += 1.0;
        leave_if_spent(state, static_cast<std::int64_t>(chosen), state.counts[chosen]);
    }
}

#if defined(__x86_64__)

// Both versions keep, per lane, the best error so far and the block it came from; a later block
// replaces an earlier one only when strictly better, so a lane holds its first maximum. The count
// of the chosen dataset is updated by a whole-vector store: the next step's vector load could not
// be forwarded from a scalar store.

__attribute__((target("avx512f,avx512dq"))) void blend_steps_avx512(const BlendState& state,
                                                                    std::int64_t begin,
                                                                    std::int64_t size,
                                                                    std::int16_t* dataset,
                                                                    std::int64_t* sample) {
    const __m512d lowest = _mm512_set1_pd(-kInfinity);
    const __m512d one = _mm512_set1_pd(1.0);
    const __m512i two = _mm512_set1_epi64(2);
    for (std::int64_t i = 0; i < size; ++i) {
        const __m512d m = _mm512_set1_pd(place_number(begin + i));
        // Two independent chains: one of them waits while the other compares.
        __m512d best0 = lowest;
        __m512d best1 = lowest;
        __m512i block0 = _mm512_setzero_si512();
        __m512i block1 = _mm512_set1_epi64(1);
        __m512i now0 = block0;
        __m512i now1 = block1;
        std::size_t b = 0;
        for (; b + 2 <= state.blocks; b += 2) {
            const __m512d error0 =
                _mm512_sub_pd(_mm512_mul_pd(_mm512_load_pd(state.weights + 8 * b), m),
                              _mm512_load_pd(state.counts + 8 * b));
            const __m512d error1 =
                _mm512_sub_pd(_mm512_mul_pd(_mm512_load_pd(state.weights + 8 * b + 8), m),
                              _mm512_load_pd(state.counts + 8 * b + 8));
            const __mmask8 better0 = _mm512_cmp_pd_mask(error0, best0, _CMP_GT_OQ);
            const __mmask8 better1 = _mm512_cmp_pd_mask(error1, best1, _CMP_GT_OQ);
            best0 = _mm512_max_pd(best0, error0);
            best1 = _mm512_max_pd(best1, error1);
            block0 = _mm512_mask_mov_epi64(block0, better0, now0);
            block1 = _mm512_mask_mov_epi64(block1, better1, now1);
            now0 = _mm512_add_epi64(now0, two);
            now1 = _mm512_add_epi64(now1, two);
        }
        if (b < state.blocks) {
            const __m512d error =
                _mm512_sub_pd(_mm512_mul_pd(_mm512_load_pd(state.weights + 8 * b), m),
                              _mm512_load_pd(state.counts + 8 * b));
            const __mmask8 better = _mm512_cmp_pd_mask(error, best0, _CMP_GT_OQ);
            best0 = _mm512_max_pd(best0, error);
            block0 = _mm512_mask_mov_epi64(block0, better, now0);
        }
        // Equal bests of the two chains go to the earlier block.
        const __mmask8 higher = _mm512_cmp_pd_mask(best1, best0, _CMP_GT_OQ);
        const __mmask8 equal = _mm512_cmp_pd_mask(best1, best0, _CMP_EQ_OQ);
        const __mmask8 earlier = _mm512_cmplt_epi64_mask(block1, block0);
        const __mmask8 second = higher | (equal & earlier);
        const __m512d best = _mm512_max_pd(best0, best1);
        const __m512i block = _mm512_mask_mov_epi64(block0, second, block1);

        alignas(64) std::int64_t blocks[8];
        _mm512_store_si512(blocks, block);
        const __m512d top = _mm512_set1_pd(_mm512_reduce_max_pd(best));
        unsigned lanes = _mm512_cmp_pd_mask(best, top, _CMP_EQ_OQ);
        auto lane = static_cast<unsigned>(std::countr_zero(lanes));
        for (lanes &= lanes - 1; lanes != 0; lanes &= lanes - 1) {
            const auto other = static_cast<unsigned>(std::countr_zero(lanes));
            if (blocks[other] < blocks[lane]) lane = other;
        }
        const std::int64_t chosen = blocks[lane] * 8 + lane;
        double* counts = state.counts + 8 * blocks[lane];
        const double count = counts[lane];
        const __m512d old = _mm512_load_pd(counts);
        const auto mask = static_cast<__mmask8>(1u << lane);
        _mm512_store_pd(counts, _mm512_mask_add_pd(old, mask, old, one));
        dataset[i] = static_cast<std::int16_t>(chosen);
        sample[i] = static_cast<std::int64_t>(count);
        leave_if_spent(state, chosen, count + 1.0);
    }
}

__attribute__((target("avx2"))) void blend_steps_avx2(const BlendState& state,
                                                      std::int64_t begin,
                                                      std::int64_t size,
                                                      std::int16_t* dataset,
                                                      std::int64_t* sample) {
    const __m256d lowest = _mm256_set1_pd(-kInfinity);
    const __m256i two = _mm256_set1_epi64x(2);
    alignas(32) static constexpr double kUnits[4][4] = {
        {1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}};
    for (std::int64_t i = 0; i < size; ++i) {
        const __m256d m = _mm256_set1_pd(place_number(begin + i));
        __m256d best0 = lowest;
        __m256d best1 = lowest;
        __m256i block0 = _mm256_setzero_si256();
        __m256i block1 = _mm256_set1_epi64x(1);
        __m256i now0 = block0;
        __m256i now1 = block1;
        for (std::size_t b = 0; b < 2 * state.blocks; b += 2) {
            const __m256d error0 =
                _mm256_sub_pd(_mm256_mul_pd(_mm256_load_pd(state.weights + 4 * b), m),
                              _mm256_load_pd(state.counts + 4 * b));
            const __m256d error1 =
                _mm256_sub_pd(_mm256_mul_pd(_mm256_load_pd(state.weights + 4 * b + 4), m),
                              _mm256_load_pd(state.counts + 4 * b + 4));
            const __m256i better0 = _mm256_castpd_si256(_mm256_cmp_pd(error0, best0, _CMP_GT_OQ));
            const __m256i better1 = _mm256_castpd_si256(_mm256_cmp_pd(error1, best1, _CMP_GT_OQ));
            best0 = _mm256_max_pd(best0, error0);
            best1 = _mm256_max_pd(best1, error1);
            block0 = _mm256_blendv_epi8(block0, now0, better0);
            block1 = _mm256_blendv_epi8(block1, now1, better1);
            now0 = _mm256_add_epi64(now0, two);
            now1 = _mm256_add_epi64(now1, two);
        }
        alignas(32) double bests[8];
        alignas(32) std::int64_t blocks[8];
        _mm256_store_pd(bests, best0);
        _mm256_store_pd(bests + 4, best1);
        _mm256_store_si256(reinterpret_cast<__m256i*>(blocks), block0);
        _mm256_store_si256(reinterpret_cast<__m256i*>(blocks + 4), block1);
        const __m256d best = _mm256_max_pd(best0, best1);
        const __m256d pair = _mm256_max_pd(best, _mm256_permute2f128_pd(best, best, 1));
        const __m256d top = _mm256_max_pd(pair, _mm256_permute_pd(pair, 5));
        auto lanes =
            static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(best0, top, _CMP_EQ_OQ)) |
                                  (_mm256_movemask_pd(_mm256_cmp_pd(best1, top, _CMP_EQ_OQ)) << 4));
        auto lane = static_cast<unsigned>(std::countr_zero(lanes));
        for (lanes &= lanes - 1; lanes != 0; lanes &= lanes - 1) {
            const auto other = static_cast<unsigned>(std::countr_zero(lanes));
            if (blocks[other] * 4 + (other & 3) < blocks[lane] * 4 + (lane & 3)) lane = other;
        }
        const std::int64_t chosen = blocks[lane] * 4 + (lane & 3);
        double* counts = state.counts + 4 * blocks[lane];
        const double count = state.counts[chosen];
        _mm256_store_pd(counts,
                        _mm256_add_pd(_mm256_load_pd(counts), _mm256_load_pd(kUnits[lane & 3])));
        dataset[i] = static_cast<std::int16_t>(chosen);
        sample[i] = static_cast<std::int64_t>(count);
        leave_if_spent(state, chosen, count + 1.0);
    }
}

#endif

BlendSteps blend_steps() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
        return blend_steps_avx512;
    }
    if (__builtin_cpu_supports("avx2")) return blend_steps_avx2;
#endif
    return blend_steps_portable;
}

}  // namespace megacore::data
