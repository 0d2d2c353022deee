/// Between square_sum.cpp and the versions of square_sum_cpu.cpp.
#pragma once

#include "kernels/square_sum.h"

namespace megacore::cpu {

/// One version of the CPU kernel, which writes the sum of every block. Arguments were checked.
struct SquareSumKernels {
    void (*blocks)(const SquareSum& args);
};

}  // namespace megacore::cpu
