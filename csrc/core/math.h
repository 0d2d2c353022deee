/// Integer arithmetic used everywhere.
#pragma once

#include <cstdint>

namespace megacore {

/// Smallest integer that is not below a / b, for a >= 0 and b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Smallest multiple of `unit` that is not below `value`, for value >= 0 and unit > 0.
constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) {
    return ceil_div(value, unit) * unit;
}

}  // namespace megacore
