/// The words CUDA adds to C++, for g++.
///
/// Shared memory is thread_local: function-local variables of a kernel become static without being
/// said to be, and `extern __shared__ T name[];` stays a declaration (its symbol is defined by
/// dynamic_shared.cmake). One operating-system thread runs all fibers of a block, so they all see
/// the same variable. The alignment spreads variables, so that running over the end of one is more
/// likely to hit nothing than its neighbour.
#pragma once

#define MEGACORE_CUDA_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ thread_local __attribute__((aligned(64)))
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

/// Runtime functions that g++ must not instrument.
#define CUDA_EMULATION_UNCHECKED __attribute__((no_sanitize("thread", "undefined")))

#ifdef __SANITIZE_THREAD__
// Copies of memory by library calls, those that g++ makes up itself included, go to the checks.
// Forced to be included first, because a name can be given only before the function is used.
extern "C" {
void* memcpy(void*, const void*, __SIZE_TYPE__) noexcept __asm__("cuda_emulation_memcpy");
void* memmove(void*, const void*, __SIZE_TYPE__) noexcept __asm__("cuda_emulation_memmove");
void* memset(void*, int, __SIZE_TYPE__) noexcept __asm__("cuda_emulation_memset");
}
#endif
