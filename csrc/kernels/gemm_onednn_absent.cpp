// Takes the place of gemm_onednn.cpp in builds without oneDNN.
#include "kernels/gemm_cpu.h"

namespace megacore::cpu {

const GemmLibrary onednn_library{"onednn", [](DType) { return false; }, [](const Product&) {}};

}  // namespace megacore::cpu
