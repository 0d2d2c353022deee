/// Which vector instructions this CPU and operating system can run.
#pragma once

#include <string>
#include <vector>

namespace megacore {

/// Instruction sets that kernels are compiled for, weakest first.
enum class Isa { kBaseline, kAvx2, kAvx512 };

/// The strongest instruction set this machine can run.
Isa detected_isa();

/// The set kernels use: the strongest one, unless use_isa() chose a weaker one.
Isa active_isa();

/// Makes kernels use `isa` from now on. For tests and benchmarks. Throws when the machine cannot.
void use_isa(Isa isa);

/// "baseline", "avx2" or "avx512".
const char* name_of(Isa isa);

/// Names of the features found, such as "avx2" and "avx512_bf16"; empty where none is known.
std::vector<std::string> cpu_features();

}  // namespace megacore
