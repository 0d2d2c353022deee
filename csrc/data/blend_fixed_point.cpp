#include "data/blend_fixed_point.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace megacore::data {

#if defined(__x86_64__)
namespace {

constexpr int kLanes = 16;
constexpr double kScale = 1 << 24;
constexpr std::int32_t kUnit = 1 << 24;
constexpr std::int64_t kWindow = 64;    // steps between two exact errors
constexpr double kLargestError = 60.0;  // of 128 that fit, leaving room for a window
constexpr std::int64_t kLargestPlace = std::int64_t{1} << 34;
constexpr std::int32_t kNever = INT32_MIN / 2;
constexpr std::int64_t kMaxAmbiguous = kWindow / 4;

/// How far the largest error may be from the fixed-point error of the exact choice. Both are off
/// by at most: half a unit from the conversion, half a unit per step from the rounded weight, and
/// the rounding of weight * place in double precision, 2^-53 * place = place * 2^-29 units, at the
/// conversion and again at the comparison.
std::int32_t tolerance(std::int64_t last_place) {
    const auto product_rounding = static_cast<std::int32_t>(last_place >> 28) + 1;
    return 2 * (1 + static_cast<std::int32_t>(kWindow) / 2 + product_rounding);
}

/// Fixed-point errors at place `m`; false when one does not fit.
__attribute__((target("avx512f,avx512dq,avx512vl"))) bool convert_errors(const BlendState& state,
                                                                         double m,
                                                                         std::int32_t* out) {
    const __m512d place = _mm512_set1_pd(m);
    const __m512d absent = _mm512_set1_pd(-std::numeric_limits<double>::infinity());
    const __m512d limit = _mm512_set1_pd(kLargestError);
    const __m512d scale = _mm512_set1_pd(kScale);
    const __m256i never = _mm256_set1_epi32(kNever);
    unsigned too_large = 0;
    for (std::size_t b = 0; b < state.blocks; ++b) {
        const __m512d error =
            _mm512_sub_pd(_mm512_mul_pd(_mm512_load_pd(state.weights + 8 * b), place),
                          _mm512_load_pd(state.counts + 8 * b));
        const __mmask8 present = _mm512_cmp_pd_mask(error, absent, _CMP_GT_OQ);
        const __mmask8 fits = _mm512_cmp_pd_mask(_mm512_abs_pd(error), limit, _CMP_LT_OQ);
        too_large |= static_cast<unsigned>(present & ~fits);
        const __m256i fixed = _mm512_cvtpd_epi32(_mm512_mul_pd(error, scale));
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + 8 * b),
                           _mm256_mask_mov_epi32(never, fits, fixed));
    }
    // An odd number of blocks leaves half a vector of 16.
    if (state.blocks % 2 != 0) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + 8 * state.blocks), never);
    }
    return too_large == 0;
}

/// The first of the datasets in `low` (0 to 63) and `high` (64 on) with the largest exact error.
std::size_t exact_choice(const BlendState& state, double m, std::uint64_t low, std::uint64_t high) {
    std::size_t chosen = 0;
    double best = -std::numeric_limits<double>::infinity();
    const auto consider = [&](std::uint64_t bits, std::size_t first) {
        for (; bits != 0; bits &= bits - 1) {
            const std::size_t d = first + static_cast<std::size_t>(std::countr_zero(bits));
            const double error = state.weights[d] * m - state.counts[d];
            if (error > best) {
                best = error;
                chosen = d;
            }
        }
    };
    consider(low, 0);
    consider(high, 64);
    return chosen;
}

/// One window of steps with V vectors of 16 errors in registers. Returns the steps taken; fewer
/// than asked when too many of them needed exact errors.
template <int V>
__attribute__((target("avx512f,avx512bw"), noinline)) std::int64_t run_window(
    const BlendState& state,
    std::int32_t* errors,
    const std::int32_t* increments,
    std::int64_t begin,
    std::int64_t size,
    std::int16_t* dataset,
    std::int64_t* sample) {
    __m512i error[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) error[v] = _mm512_load_si512(errors + kLanes * v);
    const __m512i unit = _mm512_set1_epi32(kUnit);
    const __m128i slack = _mm_set1_epi32(tolerance(begin + size));
    std::int64_t ambiguous = 0;
    for (std::int64_t i = 0; i < size; ++i) {
        __m512i top[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) top[v] = error[v];
#pragma GCC unroll 8
        for (int s = 1; s < V; s *= 2) {
#pragma GCC unroll 8
            for (int v = 0; v + s < V; v += 2 * s) top[v] = _mm512_max_epi32(top[v], top[v + s]);
        }
        const __m256i half =
            _mm256_max_epi32(_mm512_castsi512_si256(top[0]), _mm512_extracti64x4_epi64(top[0], 1));
        __m128i quarter =
            _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        quarter = _mm_max_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
        quarter = _mm_max_epi32(quarter, _mm_shuffle_epi32(quarter, 0xb1));
        const __m512i bound = _mm512_broadcastd_epi32(_mm_sub_epi32(quarter, slack));

        // The chosen dataset's error falls by one as soon as the comparison is known; its number
        // is worked out beside that.
        std::uint64_t part[8] = {};
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const __mmask16 near = _mm512_cmpge_epi32_mask(error[v], bound);
            part[v] = static_cast<std::uint64_t>(near) << (kLanes * (v & 3));
            const __m512i grown =
                _mm512_add_epi32(error[v], _mm512_load_si512(increments + kLanes * v));
            error[v] = _mm512_mask_sub_epi32(grown, near, grown, unit);
        }
        const std::uint64_t low = (part[0] | part[1]) | (part[2] | part[3]);
        const std::uint64_t upper = (part[4] | part[5]) | (part[6] | part[7]);
        // Which word holds the choice is as good as random: no branch on it.
        const std::uint64_t only_upper = std::uint64_t{0} - static_cast<std::uint64_t>(low == 0);
        const std::uint64_t word = low | (upper & only_upper);
        auto chosen = static_cast<std::size_t>(std::countr_zero(word)) +
                      static_cast<std::size_t>(only_upper & 64);
        const bool several = ((word & (word - 1)) | (upper & ~only_upper)) != 0;
        if (several) [[unlikely]] {
            chosen = exact_choice(state, static_cast<double>(begin + i), low, upper);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) _mm512_store_si512(errors + kLanes * v, error[v]);
            for (int half = 0; half < 2; ++half) {
                for (std::uint64_t bits = half == 0 ? low : upper; bits != 0; bits &= bits - 1) {
                    const auto d = static_cast<std::size_t>(64 * half + std::countr_zero(bits));
                    if (d != chosen) errors[d] += kUnit;
                }
            }
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) error[v] = _mm512_load_si512(errors + kLanes * v);
            if (++ambiguous > kMaxAmbiguous) size = i + 1;
        }
        const double count = state.counts[chosen];
        dataset[i] = static_cast<std::int16_t>(chosen);
        sample[i] = static_cast<std::int64_t>(count);
        state.counts[chosen] = count + 1.0;
        if (count + 1.0 == state.limits[chosen]) [[unlikely]] {
            state.counts[chosen] = std::numeric_limits<double>::infinity();
            return i + 1;  // the errors are converted anew
        }
    }
    return size;
}

using Window = std::int64_t (*)(const BlendState&,
                                std::int32_t*,
                                const std::int32_t*,
                                std::int64_t,
                                std::int64_t,
                                std::int16_t*,
                                std::int64_t*);

template <int... V>
constexpr std::array<Window, sizeof...(V)> make_windows(std::integer_sequence<int, V...>) {
    return {run_window<V + 1>...};
}

}  // namespace

bool has_fixed_point_blend() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

std::int64_t blend_steps_fixed_point(const BlendState& state,
                                     std::int64_t begin,
                                     std::int64_t size,
                                     std::int16_t* dataset,
                                     std::int64_t* sample) {
    static constexpr auto kWindows = make_windows(std::make_integer_sequence<int, 8>());
    alignas(64) std::int32_t errors[kFixedPointDatasets];
    alignas(64) std::int32_t increments[kFixedPointDatasets] = {};
    const std::size_t datasets = state.blocks * kBlendBlock;
    const std::size_t vectors = (datasets + kLanes - 1) / kLanes;
    for (std::size_t d = 0; d < datasets; ++d) {
        increments[d] = static_cast<std::int32_t>(std::lrint(state.weights[d] * kScale));
    }
    const Window window = kWindows[vectors - 1];
    std::int64_t taken = 0;
    while (taken < size && begin + taken < kLargestPlace) {
        const auto m = static_cast<double>(begin + taken);
        if (!convert_errors(state, m, errors)) break;
        const std::int64_t count = std::min(kWindow, size - taken);
        const std::int64_t done = window(
            state, errors, increments, begin + taken, count, dataset + taken, sample + taken);
        taken += done;
        if (done < count) break;
    }
    return taken;
}

#else

bool has_fixed_point_blend() { return false; }

std::int64_t blend_steps_fixed_point(
    const BlendState&, std::int64_t, std::int64_t, std::int16_t*, std::int64_t*) {
    return 0;
}

#endif

}  // namespace megacore::data
