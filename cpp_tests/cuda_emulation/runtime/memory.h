/// Memory of the device: what exists, what was written, who may touch it.
#pragma once

#include <cstddef>
#include <string>

#include "runtime/machine.h"
#include "runtime/races.h"

namespace cuda_emulation {

/// Every load and store of a kernel comes through here. Fails when it is out of bounds, reads what
/// nobody wrote, or races.
void check_access(
    Machine& m, const void* address, std::size_t size, Access access, const Origin& origin);

/// A row of 16 aligned bytes of shared memory that an instruction reads.
void check_shared_row(Machine& m, const void* row, std::size_t size, Site site);

/// Makes shared memory of a new block: nothing is initialized. `dynamic_bytes` of dynamic memory.
void reset_shared_memory(std::size_t dynamic_bytes);

/// Takes back the initialization of shared memory (the target of a copy on its way).
void forget(const void* address, std::size_t size);

void register_memory(const std::byte* base, std::size_t size, const std::string& name);
void unregister_memory(const std::byte* base);
/// The host wrote these bytes.
void mark_initialized(const std::byte* address, std::size_t size);
/// The first byte of the range that nobody wrote, or `size`.
std::size_t first_uninitialized(const std::byte* address, std::size_t size);

}  // namespace cuda_emulation
