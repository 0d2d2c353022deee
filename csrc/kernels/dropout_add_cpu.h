/// Between dropout_add.cpp and the versions of dropout_add_cpu.cpp.
#pragma once

#include "kernels/dropout_add.h"

namespace megacore::cpu {

/// One version of the CPU kernel. Arguments were checked, x is not empty.
struct DropoutAddKernels {
    void (*dropout_add)(const DropoutAdd& args);
};

}  // namespace megacore::cpu
