/// The warp's matrix instructions as functions: ldmatrix and mma.sync.m16n8k16.
///
/// Every lane of the warp calls them together. Registers hold what the PTX manual says they hold;
/// with g = lane / 4 and t = lane % 4, two 16-bit elements a register, the lower half first:
///   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
///   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
///   c[0], c[1] = C[g][2t..], c[2], c[3] = C[g+8][2t..]
#pragma once

#include <cstdint>

#include "cuda_emulation/device.h"

namespace cuda_emulation {

/// ldmatrix.sync.aligned.m8n8.x<count>[.trans].b16: `row` is this lane's row address (lane i gives
/// row i % 8 of matrix i / 8); register j receives M_j[g][2t..], transposed M_j[2t..][g].
void load_matrices(
    std::uint32_t* registers, int count, bool transposed, const void* row, Site site);

enum class MatrixElement { kBFloat16, kFloat16 };
/// d = a b + c with float32 accumulators. The sum of a row is exact and rounded once; a GPU's order
/// and rounding are its own.
void multiply_m16n8k16(MatrixElement element,
                       float (&d)[4],
                       const std::uint32_t (&a)[4],
                       const std::uint32_t (&b)[2],
                       const float (&c)[4],
                       Site site);

template <int kCount>
__forceinline__ void ldmatrix(std::uint32_t (&registers)[kCount],
                              const void* row,
                              Site site = Site::here(__builtin_FILE(), __builtin_LINE())) {
    static_assert(kCount == 1 || kCount == 2 || kCount == 4);
    load_matrices(registers, kCount, false, row, site);
}
template <int kCount>
__forceinline__ void ldmatrix_trans(std::uint32_t (&registers)[kCount],
                                    const void* row,
                                    Site site = Site::here(__builtin_FILE(), __builtin_LINE())) {
    static_assert(kCount == 1 || kCount == 2 || kCount == 4);
    load_matrices(registers, kCount, true, row, site);
}
__forceinline__ void mma_m16n8k16_bf16(float (&d)[4],
                                       const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[2],
                                       const float (&c)[4],
                                       Site site = Site::here(__builtin_FILE(), __builtin_LINE())) {
    multiply_m16n8k16(MatrixElement::kBFloat16, d, a, b, c, site);
}
__forceinline__ void mma_m16n8k16_f16(float (&d)[4],
                                      const std::uint32_t (&a)[4],
                                      const std::uint32_t (&b)[2],
                                      const float (&c)[4],
                                      Site site = Site::here(__builtin_FILE(), __builtin_LINE())) {
    multiply_m16n8k16(MatrixElement::kFloat16, d, a, b, c, site);
}

}  // namespace cuda_emulation
