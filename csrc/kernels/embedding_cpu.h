/// Between embedding.cpp and the versions of embedding_cpu.cpp.
#pragma once

#include "kernels/embedding.h"

namespace megacore::cpu {

/// One version of the CPU kernel. Arguments were checked, dtable is not empty.
struct EmbeddingKernels {
    void (*backward)(const EmbeddingBackward& args);
};

}  // namespace megacore::cpu
