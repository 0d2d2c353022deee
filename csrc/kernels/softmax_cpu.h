/// Between softmax.cpp and the versions of softmax_cpu.cpp.
#pragma once

#include "kernels/softmax.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked, tensors are not empty.
struct SoftmaxKernels {
    void (*forward)(const SoftmaxForward& args);
    void (*backward)(const SoftmaxBackward& args);
};

}  // namespace megacore::cpu
