// The peers of the data benchmarks: the index algorithms as direct loops, compiled with -O3.
#include <algorithm>
#include <cstdint>

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
}
