/// The warp's matrix instructions: ldmatrix and mma.sync.m16n8k16 with float32 sums.
///
/// With g = lane / 4 and t = lane % 4, registers hold two 16-bit elements each:
///   A [16, 16]: a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
///   B [16, 8]:  b[0] = B[2t..][g], b[1] = B[2t+8..][g]
///   C [16, 8]:  c[0], c[1] = C[g][2t..], c[2], c[3] = C[g+8][2t..]
/// Source: NVIDIA, "Parallel Thread Execution ISA", sections on mma and ldmatrix.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/vec.cuh"

#ifndef __NVCC__
#include "cuda_emulation/matrix.h"
#endif

namespace megacore::cuda {

#ifdef __NVCC__

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Four 8 x 8 matrices from shared memory; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// c += a b for elements of type T.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4],
                                             const std::uint32_t (&a)[4],
                                             std::uint32_t b0,
                                             std::uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

#else  // the emulation

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
    cuda_emulation::ldmatrix(r, row);
}

__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
    cuda_emulation::ldmatrix_trans(r, row);
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4],
                                             const std::uint32_t (&a)[4],
                                             std::uint32_t b0,
                                             std::uint32_t b1) {
    const std::uint32_t b[2] = {b0, b1};
    if constexpr (std::is_same_v<T, __half>) {
        cuda_emulation::mma_m16n8k16_f16(c, a, b, c);
    } else {
        cuda_emulation::mma_m16n8k16_bf16(c, a, b, c);
    }
}

#endif

/// Two neighbours of a fragment, rounded.
template <class T>
__device__ __forceinline__ std::uint32_t packed(float low, float high) {
    const T both[2] = {narrow<T>(low), narrow<T>(high)};
    std::uint32_t bits;
    memcpy(&bits, both, sizeof(bits));
    return bits;
}

/// The sums C of two neighbouring products as the left factor A of the next.
template <class T>
__device__ __forceinline__ void as_left_factor(std::uint32_t (&a)[4],
                                               const float (&left)[4],
                                               const float (&right)[4]) {
    a[0] = packed<T>(left[0], left[1]);
    a[1] = packed<T>(left[2], left[3]);
    a[2] = packed<T>(right[0], right[1]);
    a[3] = packed<T>(right[2], right[3]);
}

}  // namespace megacore::cuda
