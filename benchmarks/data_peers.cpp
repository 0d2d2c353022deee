// The peers of the data benchmarks: the index algorithms as direct loops, compiled with -O3.
#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

extern "C" {

/// Rows (position, offset) of every sample, by walking document after document.
void direct_sample_index(const std::int32_t* lengths,
                         const std::int32_t* documents,
                         std::int64_t num_documents,
                         std::int32_t sequence_length,
                         std::int64_t num_samples,
                         std::int64_t* out) {
    std::int64_t position = 0;
    std::int32_t offset = 0;
    out[0] = 0;
    out[1] = 0;
    for (std::int64_t row = 1; row <= num_samples; ++row) {
        std::int32_t need = sequence_length + 1;
        while (need != 0) {
            const std::int32_t available = lengths[documents[position]] - offset;
            need -= available;
            if (need <= 0) {
                offset += need + available - 1;
                need = 0;
            } else {
                if (position == num_documents - 1) {
                    offset = lengths[documents[position]] - 1;
                    break;
                }
                ++position;
                offset = 0;
            }
        }
        out[2 * row] = position;
        out[2 * row + 1] = offset;
    }
}

/// The dataset with the largest error at every place of a blend.
void direct_blend(const double* weights,
                  std::int32_t num_datasets,
                  std::int64_t size,
                  std::int64_t* counts,
                  std::int16_t* dataset,
                  std::int64_t* sample) {
    std::fill(counts, counts + num_datasets, 0);
    for (std::int64_t i = 0; i < size; ++i) {
        const double place = std::max(static_cast<double>(i), 1.0);
        std::int64_t chosen = 0;
        double largest = weights[0] * place - static_cast<double>(counts[0]);
        for (std::int64_t d = 1; d < num_datasets; ++d) {
            const double error = weights[d] * place - static_cast<double>(counts[d]);
            if (error > largest) {
                chosen = d;
                largest = error;
            }
        }
        dataset[i] = static_cast<std::int16_t>(chosen);
        sample[i] = counts[chosen];
        counts[chosen] += 1;
    }
}

/// Samples of several sentences: two passes over all epochs, the first of which only counts.
/// Rows [n, 3] are allocated by the second one; the caller copies them with take_rows.
static std::vector<std::uint32_t> rows_of_sentences;

std::int64_t direct_sentence_map(const std::int64_t* boundaries,
                                 std::int64_t num_documents,
                                 const std::int32_t* sizes,
                                 std::int64_t num_samples,
                                 std::int32_t max_length,
                                 std::int32_t ratio,
                                 std::int32_t seed,
                                 std::int32_t min_sentences) {
    std::int64_t count = 0;
    for (int pass = 0; pass < 2; ++pass) {
        std::mt19937 random(static_cast<std::uint32_t>(seed));
        const auto draw = [&]() -> std::int32_t {
            if (ratio == 0) return max_length;
            const std::uint32_t value = random();
            if (value % static_cast<std::uint32_t>(ratio) != 0) return max_length;
            return static_cast<std::int32_t>(
                2 + value % static_cast<std::uint32_t>(max_length - 1));
        };
        if (pass == 1) rows_of_sentences.resize(static_cast<std::size_t>(3 * count));
        count = 0;
        while (count < num_samples) {
            for (std::int64_t d = 0; d < num_documents; ++d) {
                const std::int64_t first = boundaries[d], last = boundaries[d + 1];
                std::int64_t remaining = last - first;
                bool has_long = false;
                if (remaining > 1) {
                    for (std::int64_t s = first; s < last; ++s) {
                        if (sizes[s] > 512) {
                            has_long = true;
                            break;
                        }
                    }
                }
                if (has_long || remaining < min_sentences) continue;
                std::int64_t start = first;
                std::int32_t length = 0, taken = 0, target = draw();
                for (std::int64_t s = first; s < last; ++s) {
                    length += sizes[s];
                    ++taken;
                    --remaining;
                    if ((length >= target && remaining > 1 && taken >= min_sentences) ||
                        remaining == 0) {
                        if (pass == 1) {
                            const auto row = static_cast<std::size_t>(3 * count);
                            rows_of_sentences[row] = static_cast<std::uint32_t>(start);
                            rows_of_sentences[row + 1] = static_cast<std::uint32_t>(s + 1);
                            rows_of_sentences[row + 2] = static_cast<std::uint32_t>(target);
                        }
                        ++count;
                        start = s + 1;
                        target = draw();
                        length = taken = 0;
                    }
                }
            }
        }
    }
    std::mt19937_64 random(static_cast<std::uint64_t>(seed) + 1);
    for (std::int64_t i = count - 1; i > 0; --i) {
        const auto j = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(i + 1));
        for (int k = 0; k < 3; ++k) {
            std::swap(rows_of_sentences[static_cast<std::size_t>(3 * i + k)],
                      rows_of_sentences[static_cast<std::size_t>(3 * j + k)]);
        }
    }
    return count;
}

void take_rows(std::uint32_t* out) {
    std::copy(rows_of_sentences.begin(), rows_of_sentences.end(), out);
    rows_of_sentences = {};
}
}
