/// Layer normalization and root-mean-square normalization over the last dimension.
///
///   LayerNorm:  y = (x - mean(x)) * rstd * w + b,  rstd = 1 / sqrt(var(x) + eps), biased variance
///   RMSNorm:    y = x * rstd * w,                  rstd = 1 / sqrt(mean(x^2) + eps)
///
/// where w is `weight`, or 1 + `weight` when zero_centered. A call is a LayerNorm when it brings
/// `mean`, else an RMSNorm (without bias).
///
/// M rows of H elements. x and everything of its shape: float32, bfloat16 or float16. weight and
/// bias: one dtype, either that of x, or float32, or (float32 x only) bfloat16 or float16.
/// Accumulation: float32, whatever the dtypes. Saved for backward: x, weight, mean, rstd.
/// Determinism: bitwise, independent of the number of threads; the order of every sum depends on
/// M and H only (on CUDA also on the device).
/// Source: Ba, Kiros, Hinton, "Layer Normalization", 2016; Zhang, Sennrich, "Root Mean Square Layer
/// Normalization", 2019.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

struct NormForward {
    TensorView out;     ///< [M, H] out, dtype of x, contiguous
    TensorView mean;    ///< [M] out, float32; absent for RMSNorm
    TensorView rstd;    ///< [M] out, float32
    TensorView x;       ///< [M, H] contiguous
    TensorView weight;  ///< [H] contiguous
    TensorView bias;    ///< [H] dtype of weight, contiguous; optional
    float eps = 1e-5f;
    bool zero_centered = false;
};

struct NormBackward {
    TensorView dx;       ///< [M, H] out, dtype of x, contiguous
    TensorView dweight;  ///< [H] out, dtype of weight
    TensorView dbias;    ///< [H] out, dtype of weight; absent without bias
    TensorView dout;     ///< [M, H] dtype of x, contiguous
    TensorView x;        ///< [M, H] contiguous
    TensorView weight;   ///< [H] contiguous
    TensorView mean;     ///< [M] float32; absent for RMSNorm
    TensorView rstd;     ///< [M] float32
    bool zero_centered = false;
    TensorView workspace;  ///< [norm_backward_workspace(M, H)] float32
};

/// Throw when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const NormForward& args);
void check(const NormBackward& args);

namespace cpu {
void norm_forward(const NormForward& args);
/// Floats of workspace that norm_backward needs.
std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden);
void norm_backward(const NormBackward& args);
}  // namespace cpu

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void norm_forward(const NormForward& args, void* stream);
std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden);
void norm_backward(const NormBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
