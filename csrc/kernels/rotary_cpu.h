/// Between rotary.cpp and the versions of rotary_cpu.cpp.
#pragma once

#include "kernels/rotary.h"

namespace megacore::cpu {

/// One version of the CPU kernel. Arguments were checked, packed is not empty.
struct RotaryKernels {
    void (*rotary)(const Rotary& args);
};

}  // namespace megacore::cpu
