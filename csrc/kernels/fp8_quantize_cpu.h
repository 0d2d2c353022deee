/// Between fp8_quantize.cpp and the versions of fp8_quantize_cpu.cpp.
#pragma once

#include "kernels/fp8_quantize.h"

namespace megacore::cpu {

/// One version of the CPU kernels. Arguments were checked, x is not empty.
struct Fp8QuantizeKernels {
    void (*tensor)(const Fp8Quantize& args);
    void (*blocks)(const Fp8QuantizeBlocks& args);
};

}  // namespace megacore::cpu
