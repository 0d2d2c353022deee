/// A vector of floats for the instruction set that the including file is compiled for.
///
/// Every <op>_cpu.cpp is compiled once per instruction set with MEGACORE_ISA naming it (see
/// cmake/MegacoreKernels.cmake). All code of such a file lives in namespace
/// megacore::cpu::MEGACORE_ISA, so that the linker never mixes code of two instruction sets.
/// Vec converts from and to bfloat16 and float16 with the same roundings as core/dtype.h.
#pragma once

#ifndef MEGACORE_ISA
#error "kernels/simd.h is for files compiled per instruction set"
#endif

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

#if defined(__AVX512F__)
#include "kernels/simd_avx512.h"
#elif defined(__AVX2__)
#include "kernels/simd_avx2.h"
#else
#include "kernels/simd_baseline.h"
#endif

namespace megacore::cpu::MEGACORE_ISA {

/// The first `count` < Vec::kWidth elements at `source`; the other lanes are zero.
template <class T>
inline Vec load_partial(const T* source, std::int64_t count) {
    T lanes[Vec::kWidth] = {};
    std::memcpy(lanes, source, static_cast<std::size_t>(count) * sizeof(T));
    return Vec::load(lanes);
}

/// Writes the first `count` < Vec::kWidth lanes.
template <class T>
inline void store_partial(T* target, Vec value, std::int64_t count) {
    T lanes[Vec::kWidth];
    value.store(lanes);
    std::memcpy(target, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

/// Calls body(offset, load, store) over [0, size) in steps of the vector width, the rest partially.
/// load(pointer) gives the lanes at pointer + offset, store(pointer, value) writes them.
template <class Body>
inline void for_each_vec(std::int64_t size, const Body& body) {
    std::int64_t i = 0;
    for (; i + Vec::kWidth <= size; i += Vec::kWidth) {
        body([i](const auto* source) { return Vec::load(source + i); },
             [i](auto* target, Vec value) { value.store(target + i); });
    }
    if (i < size) {
        const std::int64_t rest = size - i;
        body([i, rest](const auto* source) { return load_partial(source + i, rest); },
             [i, rest](auto* target, Vec value) { store_partial(target + i, value, rest); });
    }
}

}  // namespace megacore::cpu::MEGACORE_ISA
