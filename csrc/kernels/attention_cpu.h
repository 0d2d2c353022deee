/// Between attention.cpp and the versions of attention_cpu.cpp.
#pragma once

#include "kernels/attention.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked.
struct AttentionKernels {
    std::int64_t (*forward_workspace)(const AttentionForward& args);
    std::int64_t (*backward_workspace)(const AttentionBackward& args);
    void (*forward)(const AttentionForward& args);
    void (*backward)(const AttentionBackward& args);
};

}  // namespace megacore::cpu
