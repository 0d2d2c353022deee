/// Between activation.cpp and the versions of activation_cpu.cpp.
#pragma once

#include "kernels/activation.h"
#include "kernels/row_chunks.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked, x is not empty.
struct ActivationKernels {
    void (*forward)(const ActivationForward& args);
    void (*backward)(const ActivationBackward& args);
};

/// Rows that add to one partial sum of the bias gradient.
constexpr RowChunks activation_chunks(std::int64_t num_rows) {
    return row_chunks(num_rows, 16, 64);
}

}  // namespace megacore::cpu
