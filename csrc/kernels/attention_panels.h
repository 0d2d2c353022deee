/// What the forward and the backward CPU kernel of attention.h share. Included by files compiled
/// per instruction set.
///
/// The rows of a sequence and a group are its queries times their heads, heads fastest, so that a
/// key is read once for all of them. A panel is as many rows as kPanelVecs vectors have lanes: its
/// scores, weights and outputs are kept with rows in lanes, [keys or D, kPanel], so that maxima and
/// sums over keys are those of whole vectors, and products broadcast keys and values as they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/math.h"
#include "kernels/attention_range.h"
#include "kernels/philox.h"
#include "kernels/simd_math.h"

namespace megacore::cpu::MEGACORE_ISA {

inline constexpr int kPanelVecs = 3;
inline constexpr int kPanel = kPanelVecs * Vec::kWidth;
inline constexpr std::int64_t kKeyTile = 64;
inline constexpr float kNoScore = -std::numeric_limits<float>::infinity();

// --- Products -----------------------------------------------------------------------------------

// Rows of a block of accumulators: as many as the registers hold, and enough to hide the latency.
constexpr int block_rows(int vecs) { return Vec::kWidth == 16 || vecs == 1 ? 8 : 4; }

/// C [kRows, kVecs vectors] = A B, or C + A B, with A(row, k) = a[row * a_row + k * a_k] and B
/// [depth, kVecs vectors] with rows of ldb floats.
template <int kRows, int kVecs, bool kAdd>
inline void multiply_block(float* c,
                           std::int64_t ldc,
                           const float* a,
                           std::int64_t a_row,
                           std::int64_t a_k,
                           const float* b,
                           std::int64_t ldb,
                           std::int64_t depth) {
    Vec sums[kRows][kVecs];
    for (int row = 0; row < kRows; ++row) {
        for (int vec = 0; vec < kVecs; ++vec) {
            sums[row][vec] = kAdd ? Vec::load(c + row * ldc + vec * Vec::kWidth) : Vec::zero();
        }
    }
    for (std::int64_t k = 0; k < depth; ++k) {
        Vec right[kVecs];
        for (int vec = 0; vec < kVecs; ++vec) right[vec] = Vec::load(b + vec * Vec::kWidth);
        for (int row = 0; row < kRows; ++row) {
            const Vec left = Vec::broadcast(a[row * a_row]);
            for (int vec = 0; vec < kVecs; ++vec) {
                sums[row][vec] = Vec::fma(left, right[vec], sums[row][vec]);
            }
        }
        a += a_k;
        b += ldb;
    }
    for (int row = 0; row < kRows; ++row) {
        for (int vec = 0; vec < kVecs; ++vec)
            sums[row][vec].store(c + row * ldc + vec * Vec::kWidth);
    }
}

/// The same for any number of rows.
template <int kVecs, bool kAdd>
inline void multiply(float* c,
                     std::int64_t ldc,
                     const float* a,
                     std::int64_t a_row,
                     std::int64_t a_k,
                     const float* b,
                     std::int64_t ldb,
                     std::int64_t rows,
                     std::int64_t depth) {
    constexpr int kRows = block_rows(kVecs);
    std::int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
        multiply_block<kRows, kVecs, kAdd>(
            c + row * ldc, ldc, a + row * a_row, a_row, a_k, b, ldb, depth);
    }
    for (; row < rows; ++row) {
        multiply_block<1, kVecs, kAdd>(
            c + row * ldc, ldc, a + row * a_row, a_row, a_k, b, ldb, depth);
    }
}

/// C [rows, vecs vectors] += A B for any number of vectors, in nearly equal groups of at most 3.
inline void multiply_add_wide(float* c,
                              std::int64_t ldc,
                              const float* a,
                              std::int64_t a_row,
                              const float* b,
                              std::int64_t ldb,
                              std::int64_t rows,
                              std::int64_t depth) {
    std::int64_t vecs = ldc / Vec::kWidth;
    for (std::int64_t groups = ceil_div(vecs, 3); groups > 0; --groups) {
        const std::int64_t size = ceil_div(vecs, groups);
        if (size == 3) {
            multiply<3, true>(c, ldc, a, a_row, 1, b, ldb, rows, depth);
        } else if (size == 2) {
            multiply<2, true>(c, ldc, a, a_row, 1, b, ldb, rows, depth);
        } else {
            multiply<1, true>(c, ldc, a, a_row, 1, b, ldb, rows, depth);
        }
        c += size * Vec::kWidth;
        b += size * Vec::kWidth;
        vecs -= size;
    }
}

// --- Rows and panels ----------------------------------------------------------------------------

/// The rows of one sequence and group of a tensor [B, S, G, R, D] or [B, S, G, D].
template <class T>
struct HeadRows {
    T* data;
    std::int64_t token_stride;
    std::int64_t head_stride;
    std::int64_t ratio;

    static HeadRows of(const TensorView& tensor, std::int64_t batch, std::int64_t group) {
        const auto& strides = tensor.strides;
        const bool heads = tensor.rank == 5;
        return {tensor.as<T>() + batch * strides[0] + group * strides[2],
                strides[1],
                heads ? strides[3] : 0,
                heads ? tensor.sizes[3] : 1};
    }

    T* at(std::int64_t row) const {
        return data + row / ratio * token_stride + row % ratio * head_stride;
    }
};

/// Converts `size` elements, scaled, and fills up to the next whole vector with zeros.
template <class T>
inline void widen_row(float* target, const T* source, std::int64_t size, Vec scale) {
    std::int64_t i = 0;
    for (; i + Vec::kWidth <= size; i += Vec::kWidth) {
        (Vec::load(source + i) * scale).store(target + i);
    }
    if (i < size) (load_partial(source + i, size - i) * scale).store(target + i);
}

template <class T>
inline void narrow_row(T* target, const float* source, std::int64_t size, Vec scale) {
    for_each_vec(size, [&](auto load, auto store) { store(target, load(source) * scale); });
}

/// Rows [first, first + kPanel) as floats with rows of `width` (whole vectors): `rows` [kPanel,
/// width], and `lanes` [size, kPanel] with rows in lanes. Absent rows are zeros.
template <class T>
inline void load_panel(float* rows,
                       float* lanes,
                       const HeadRows<const T>& source,
                       std::int64_t first,
                       std::int64_t num_rows,
                       std::int64_t size,
                       float scale) {
    const std::int64_t width = round_up(size, Vec::kWidth);
    for (int lane = 0; lane < kPanel; ++lane) {
        float* const row = rows + lane * width;
        if (first + lane < num_rows) {
            widen_row(row, source.at(first + lane), size, Vec::broadcast(scale));
        } else {
            std::fill(row, row + width, 0.0f);
        }
    }
    for (std::int64_t d = 0; d < size; ++d) {
        for (int lane = 0; lane < kPanel; ++lane) lanes[d * kPanel + lane] = rows[lane * width + d];
    }
}

/// Writes lanes [size, kPanel] back as rows, each times its factor.
template <class T>
inline void store_panel(const HeadRows<T>& target,
                        const float* lanes,
                        std::int64_t first,
                        std::int64_t num_rows,
                        std::int64_t size,
                        const float (&factors)[kPanel]) {
    float row[kMaxAttentionHead];
    const std::int64_t count = std::min<std::int64_t>(kPanel, num_rows - first);
    for (std::int64_t lane = 0; lane < count; ++lane) {
        for (std::int64_t d = 0; d < size; ++d) row[d] = lanes[d * kPanel + lane];
        narrow_row(target.at(first + lane), row, size, Vec::broadcast(factors[lane]));
    }
}

/// What the rows of a panel see, and what of that is masked by hand.
struct PanelRange {
    std::int64_t begin[kPanel];
    std::int64_t end[kPanel];
    IndexRange any;  ///< Keys that at least one row may see.

    void load(const AttentionRange& range,
              std::int64_t batch,
              std::int64_t ratio,
              std::int64_t first,
              std::int64_t num_rows) {
        std::int64_t query = -1;
        IndexRange seen{0, 0};
        any = {std::numeric_limits<std::int64_t>::max(), 0};
        for (int lane = 0; lane < kPanel; ++lane) {
            const std::int64_t row = first + lane;
            if (row >= num_rows) {
                seen = {0, 0};
            } else if (row / ratio != query) {
                query = row / ratio;
                seen = range.keys_of(batch, query);
            }
            begin[lane] = seen.begin;
            end[lane] = seen.end;
            if (seen.begin == seen.end) continue;
            any.begin = std::min(any.begin, seen.begin);
            any.end = std::max(any.end, seen.end);
        }
        any.begin = std::min(any.begin, any.end);
    }

    /// The part of the keys [first, last) that some row sees.
    IndexRange within(std::int64_t first, std::int64_t last) const {
        return IndexRange::of(std::max(any.begin, first), std::min(any.end, last));
    }

    bool all_see(IndexRange keys) const {
        for (int lane = 0; lane < kPanel; ++lane) {
            if (begin[lane] > keys.begin || end[lane] < keys.end) return false;
        }
        return true;
    }

    /// Puts `hidden` where a row of tile [keys, kPanel] does not see a key.
    void hide(float* tile, IndexRange keys, float hidden) const {
        if (all_see(keys)) return;
        const Vec value = Vec::broadcast(hidden);
        const auto inside = [&](std::int64_t bound) {  // exact as a float
            return static_cast<float>(std::clamp(bound, keys.begin, keys.end) - keys.begin);
        };
        float first[kPanel], last[kPanel];
        for (int lane = 0; lane < kPanel; ++lane) {
            first[lane] = inside(begin[lane]);
            last[lane] = inside(end[lane]);
        }
        for (std::int64_t key = 0; key < keys.end - keys.begin; ++key) {
            const Vec index = Vec::broadcast(static_cast<float>(key));
            float* const row = tile + key * kPanel;
            for (int lane = 0; lane < kPanel; lane += Vec::kWidth) {
                const Vec below =
                    Vec::if_less(index, Vec::load(last + lane), Vec::load(row + lane), value);
                Vec::if_less(index, Vec::load(first + lane), value, below).store(row + lane);
            }
        }
    }
};

// --- Dropout ------------------------------------------------------------------------------------

/// The factors of the weights of a panel.
struct PanelDropout {
    DropoutFactors factors;
    std::uint64_t seed;
    bool active;

    static PanelDropout of(const AttentionRule& rule) {
        return {DropoutFactors::of({.drop = rule.drop}), rule.seed, rule.drop > 0.0};
    }

    /// keep [keys, kPanel]: 0 or 1 / (1 - p). weights(row) is the number of the weight of that row
    /// of the panel and key 0.
    template <class Weights>
    void draw(float* keep, IndexRange keys, std::int64_t count, const Weights& weights) const {
        constexpr std::int64_t kCounters = kKeyTile / 4 + 1;
        std::uint32_t words[4 * kCounters];
        const std::int64_t size = keys.end - keys.begin;
        for (std::int64_t lane = 0; lane < kPanel; ++lane) {
            if (lane >= count) {
                for (std::int64_t key = 0; key < size; ++key) keep[key * kPanel + lane] = 0.0f;
                continue;
            }
            const std::int64_t first = weights(lane) + keys.begin;
            const std::uint64_t counter = static_cast<std::uint64_t>(first) / 4;
            for (std::int64_t i = 0; i < kCounters; ++i) {
                const Philox philox = Philox::at(seed, counter + static_cast<std::uint64_t>(i));
                for (int k = 0; k < 4; ++k) words[4 * i + k] = philox.words[k];
            }
            const std::uint32_t* const own = words + first % 4;
            for (std::int64_t key = 0; key < size; ++key) {
                const bool dropped = (own[key] >> 8) < factors.threshold;
                keep[key * kPanel + lane] = dropped ? 0.0f : factors.scale;
            }
        }
    }
};

}  // namespace megacore::cpu::MEGACORE_ISA
