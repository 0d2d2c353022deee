/// Non-linearities of a feed-forward layer, with its bias and gate.
///
///   z = x + bias                                   (bias absent: z = x)
///   out = f(z)                                     not gated
///   out = f(z[:, :F]) * z[:, F:]                   gated (GEGLU, SwiGLU)
///
/// f is one of
///   kGeluTanh     z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3)))
///   kGeluErf      z * Phi(z), Phi the distribution function of the standard normal distribution
///   kGeluQuick    z * sigmoid(1.702 z)
///   kSilu         z * sigmoid(z)
///   kSquaredRelu  max(z, 0)^2
///
/// M rows; x has W = F columns, or W = 2 F when gated. x and everything of its shape, out, dout and
/// bias: one dtype, float32, bfloat16 or float16. Arithmetic and sums: float32. Saved for backward:
/// x and bias; f is computed again. Determinism: bitwise, independent of the number of threads; the
/// order of every sum depends on M only.
/// Source: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016; Shazeer, "GLU Variants Improve
/// Transformer", 2020; So et al., "Primer", 2021 (squared ReLU).
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

enum class Activation : std::uint8_t { kGeluTanh, kGeluErf, kGeluQuick, kSilu, kSquaredRelu };
inline constexpr int kNumActivations = 5;

struct ActivationForward {
    TensorView out;   ///< [M, F] out, contiguous
    TensorView x;     ///< [M, W] contiguous
    TensorView bias;  ///< [W] contiguous; optional
    Activation activation = Activation::kGeluTanh;
    bool gated = false;
};

struct ActivationBackward {
    TensorView dx;     ///< [M, W] out, contiguous
    TensorView dbias;  ///< [W] out, contiguous; present exactly with a bias
    TensorView dout;   ///< [M, F] contiguous
    TensorView x;      ///< [M, W] contiguous
    TensorView bias;   ///< [W] contiguous; optional
    Activation activation = Activation::kGeluTanh;
    bool gated = false;
    TensorView workspace;  ///< [activation_backward_workspace(M, W)] float32; absent without a bias
};

/// Throw when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const ActivationForward& args);
void check(const ActivationBackward& args);

namespace cpu {
void activation_forward(const ActivationForward& args);
/// Floats of workspace that activation_backward needs with a bias.
std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width);
void activation_backward(const ActivationBackward& args);
}  // namespace cpu

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void activation_forward(const ActivationForward& args, void* stream);
std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width);
void activation_backward(const ActivationBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
