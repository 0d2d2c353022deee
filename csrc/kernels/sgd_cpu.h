/// Between sgd.cpp and the versions of sgd_cpu.cpp.
#pragma once

#include "kernels/sgd.h"

namespace megacore::cpu {

/// One version of the CPU kernel. Arguments were checked, there is at least one parameter.
struct SgdKernels {
    void (*step)(const SgdStep& args);
};

}  // namespace megacore::cpu
