/// Read-modify-write in one step. Each is an ordinary atomic access for the race detector, and a
/// place where another thread may get its turn.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda_emulation/keywords.h"

namespace cuda_emulation {

/// Checks an atomic access of `size` bytes at `address` and lets other threads run before it.
void before_atomic(const void* address, unsigned size);

template <class T, class Change>
CUDA_EMULATION_UNCHECKED inline T atomic_update(T* address, const Change& change) {
    before_atomic(address, sizeof(T));
    const T old = *address;
    *address = change(old);
    return old;
}

template <class T>
using Same = std::type_identity_t<T>;

}  // namespace cuda_emulation

#define CUDA_EMULATION_ATOMIC(name, expression)                                            \
    template <class T>                                                                     \
    __forceinline__ T name(T* address, cuda_emulation::Same<T> value) {                    \
        return cuda_emulation::atomic_update(                                              \
            address, [value](T old) CUDA_EMULATION_UNCHECKED -> T { return expression; }); \
    }                                                                                      \
    template <class T>                                                                     \
    __forceinline__ T name##_block(T* address, cuda_emulation::Same<T> value) {            \
        return name(address, value);                                                       \
    }                                                                                      \
    template <class T>                                                                     \
    __forceinline__ T name##_system(T* address, cuda_emulation::Same<T> value) {           \
        return name(address, value);                                                       \
    }

CUDA_EMULATION_ATOMIC(atomicAdd, static_cast<T>(old + value))
CUDA_EMULATION_ATOMIC(atomicSub, static_cast<T>(old - value))
CUDA_EMULATION_ATOMIC(atomicExch, (static_cast<void>(old), value))
CUDA_EMULATION_ATOMIC(atomicMin, (value < old ? value : old))
CUDA_EMULATION_ATOMIC(atomicMax, (old < value ? value : old))
CUDA_EMULATION_ATOMIC(atomicAnd, static_cast<T>(old& value))
CUDA_EMULATION_ATOMIC(atomicOr, static_cast<T>(old | value))
CUDA_EMULATION_ATOMIC(atomicXor, static_cast<T>(old ^ value))
/// Counts up to `value`, then starts at 0 again.
CUDA_EMULATION_ATOMIC(atomicInc, static_cast<T>(old >= value ? 0 : old + 1))
/// Counts down from `value`; starts again there at 0 and when above it.
CUDA_EMULATION_ATOMIC(atomicDec, static_cast<T>(old == 0 || old > value ? value : old - 1))
#undef CUDA_EMULATION_ATOMIC

template <class T>
__forceinline__ T atomicCAS(T* address,
                            cuda_emulation::Same<T> expected,
                            cuda_emulation::Same<T> desired) {
    return cuda_emulation::atomic_update(address,
                                         [expected, desired](T old) CUDA_EMULATION_UNCHECKED -> T {
                                             return old == expected ? desired : old;
                                         });
}
