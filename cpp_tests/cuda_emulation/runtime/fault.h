/// How a fault ends a launch.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/machine.h"

namespace cuda_emulation {

/// Ends the launch: the fiber is left for good and launch() throws Fault. The first line names the
/// fault, `details` follow kernel, block and thread. On the host it throws at once.
[[noreturn]] void fail(const std::string& what, const std::string& details);

/// "norm.cu:57", or "" when unknown.
std::string describe(Site site);
/// Function and source line of an instruction, inlined callers included.
std::string describe_code(const void* pc);
/// "thread (3, 0, 0)".
std::string describe_thread(const Machine& m, std::uint32_t linear);
std::string describe_address(const void* address);

}  // namespace cuda_emulation
