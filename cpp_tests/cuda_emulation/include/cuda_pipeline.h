/// Asynchronous copies from global to shared memory in groups (cp.async), by CUDA's C interface.
///
/// A copy happens as late as it may: when the group is waited for. Until then its target counts as
/// not initialized, so a missing wait is found.
#pragma once

#include <cstddef>

#include "cuda_runtime.h"

namespace cuda_emulation {
void async_copy(void* shared, const void* global, std::size_t size, std::size_t zeros, Site site);
void async_commit();
/// Waits for all groups but the last `pending`.
void async_wait(std::size_t pending);
}  // namespace cuda_emulation

/// `size` is 4, 8 or 16; the last `zeros` bytes are filled with zeros instead of being read.
__forceinline__ void __pipeline_memcpy_async(void* shared,
                                             const void* global,
                                             std::size_t size,
                                             std::size_t zeros = 0,
                                             CUDA_EMULATION_SITE) {
    cuda_emulation::async_copy(shared, global, size, zeros, site);
}
__forceinline__ void __pipeline_commit() { cuda_emulation::async_commit(); }
__forceinline__ void __pipeline_wait_prior(std::size_t pending) {
    cuda_emulation::async_wait(pending);
}
