/// Between attention_cpu.cpp and attention_backward_cpu.cpp of one instruction set.
#pragma once

#include "kernels/attention.h"

namespace megacore::cpu::MEGACORE_ISA {

std::int64_t attention_backward_workspace(const AttentionBackward& args);
void attention_backward(const AttentionBackward& args);

}  // namespace megacore::cpu::MEGACORE_ISA
