/// Between adamw.cpp and the versions of adamw_cpu.cpp.
#pragma once

#include "kernels/adamw.h"

namespace megacore::cpu {

/// One version of the CPU kernel. Arguments were checked, N is not 0.
struct AdamWKernels {
    void (*step)(const AdamWStep& args);
};

}  // namespace megacore::cpu
