/// One step of stochastic gradient descent over flat buffers, with the low-precision copy written
/// in the same pass.
///
///   g = grad * grad_scale + weight_decay * p
///   m = momentum * m + g              (without a momentum buffer: m = g)
///   p = p - lr * m
///   model_param = round(p)
///
/// Elements are independent, so the result does not depend on threads. All arithmetic is float32.
/// Moves 20 bytes per parameter, 12 without momentum, 2 more with a 16-bit copy; bound by memory.
/// Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
/// 2013, in the form of PyTorch (the learning rate outside of the momentum).
#pragma once

#include "core/tensor_view.h"

namespace megacore {

struct SgdStep {
    TensorView param;            ///< [N] in and out, float32
    TensorView momentum_buffer;  ///< [N] in and out, float32; optional
    TensorView model_param;      ///< [N] out, float32, bfloat16 or float16; optional
    TensorView grad;             ///< [N] float32
    double lr = 0.0;
    double momentum = 0.0;
    double weight_decay = 0.0;
    double grad_scale = 1.0;  ///< Multiplies the gradient: clipping and loss scale.
};

/// Throws when a tensor or scalar is out of contract; the message names it.
void check(const SgdStep& args);

namespace cpu {
void sgd_step(const SgdStep& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void sgd_step(const SgdStep& args, void* stream);
}  // namespace cuda

}  // namespace megacore
