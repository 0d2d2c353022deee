/// Between cross_entropy.cpp and the versions of cross_entropy_cpu.cpp.
#pragma once

#include "kernels/cross_entropy.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked, logits is not empty.
struct CrossEntropyKernels {
    void (*forward)(const CrossEntropyForward& args);
    void (*backward)(const CrossEntropyBackward& args);
};

}  // namespace megacore::cpu
