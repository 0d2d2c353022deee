/// Matrix products.
///
///   out = gelu(a b + bias) + residual      rounded once, from float32
///   out += a b                             with `accumulate`: out is float32, nothing is rounded
///
/// The three products of a linear layer y = x W^T + bias are a = x, b = W^T; dx = dy W; and the
/// weight's gradient, out = dW += dy^T x. Transposes are views: one of the last two strides of a
/// and of b is 1. With three dimensions the first one numbers independent products.
///
/// a and b have one dtype, float32, bfloat16 or float16; out has that dtype or float32. Sums are
/// float32. GELU is the one with tanh. Bound by arithmetic: 2 M N K operations. The order of sums
/// is the back end's: same shapes, same number of threads, same bits.
///
/// No loop of ours multiplies matrices. The back end on the CPU is MKL, which PyTorch's wheels for
/// x86 contain and export. Without it, and on CUDA, PyTorch's product runs in place of this op.
/// Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
/// 2022 (gradients accumulated by the product).
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

struct Gemm {
    TensorView out;       ///< [M, N] or [B, M, N] out, rows without gaps inside
    TensorView a;         ///< [M, K] or [B, M, K]
    TensorView b;         ///< [K, N] or [B, K, N]
    TensorView bias;      ///< [N] dtype of a; optional
    TensorView residual;  ///< like out, dtype of a, contiguous; optional
    bool gelu = false;
    bool accumulate = false;
    TensorView workspace;  ///< [gemm_workspace()] float32; absent when that is 0
};

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const Gemm& args);

namespace cpu {

/// Name of the back end that multiplies matrices of `dtype` here, or "" when there is none.
const char* gemm_backend(DType dtype);

/// Elements of workspace for an output [M, N] of dtype `out`.
std::int64_t gemm_workspace(std::int64_t num_rows, std::int64_t num_columns, DType out);

/// Throws when there is no back end.
void gemm(const Gemm& args);

}  // namespace cpu

}  // namespace megacore
