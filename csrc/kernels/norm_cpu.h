/// Between norm.cpp and the versions of norm_cpu.cpp.
#pragma once

#include <cstdint>

#include "core/math.h"
#include "kernels/norm.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked, H is not 0.
struct NormKernels {
    void (*forward)(const NormForward& args);
    void (*backward)(const NormBackward& args);
};

/// Rows of one partial sum of the weight gradient. A function of the shape alone, never of the
/// number of threads: that is what makes the result the same on any number of threads.
constexpr std::int64_t norm_backward_rows_per_chunk(std::int64_t num_rows) {
    constexpr std::int64_t kMinRows = 16;
    constexpr std::int64_t kMaxChunks = 64;
    const std::int64_t rows = ceil_div(num_rows, kMaxChunks);
    return rows > kMinRows ? rows : kMinRows;
}

constexpr std::int64_t norm_backward_chunks(std::int64_t num_rows) {
    return ceil_div(num_rows, norm_backward_rows_per_chunk(num_rows));
}

}  // namespace megacore::cpu
