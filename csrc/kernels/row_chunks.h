/// Cutting rows into chunks that each give one partial sum per column.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/math.h"

namespace megacore {

/// A function of the shape alone, never of the number of threads or multiprocessors: that is what
/// makes a sum over rows the same everywhere.
struct RowChunks {
    std::int64_t rows;   ///< Of every chunk but the last, which may have fewer.
    std::int64_t count;  ///< Number of chunks.
};

constexpr RowChunks row_chunks(std::int64_t num_rows,
                               std::int64_t min_rows,
                               std::int64_t max_chunks) {
    const std::int64_t rows = std::max(ceil_div(num_rows, max_chunks), min_rows);
    return {rows, ceil_div(num_rows, rows)};
}

}  // namespace megacore
