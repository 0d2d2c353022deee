/// The symbol table of the running program: names of kernels, and the shared variables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cuda_emulation {

/// A thread_local variable; shared memory is made of these.
struct ThreadLocalSymbol {
    std::uint64_t offset;  ///< In the program's thread-local segment.
    std::uint64_t size;
    std::string name;  ///< Demangled, without the namespaces.
    /// g++'s own note that a variable was constructed. It keeps one for every type with a default
    /// constructor, even where that does nothing.
    bool guard;
};

/// All of them, by offset. Empty for a stripped program.
const std::vector<ThreadLocalSymbol>& thread_local_symbols();

/// Demangled name of the function at `address`, or the address.
std::string symbol_name(const void* address);

/// Address of the program's first byte: instructions are described relative to it.
const std::byte* image_base();
/// Whether the address is part of a loaded program or library (constants, __device__ variables).
bool in_loaded_image(const void* address);

}  // namespace cuda_emulation
