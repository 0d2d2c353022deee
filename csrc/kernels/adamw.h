/// One step of AdamW over flat buffers, with the low-precision copy written in the same pass.
///
///   g = grad * grad_scale
///   m = beta1 m + (1 - beta1) g
///   v = beta2 v + (1 - beta2) g^2
///   p = p (1 - lr weight_decay) - lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)
///   model_param = round(p)
///
/// Elements are independent, so the result does not depend on threads. All arithmetic is float32,
/// the scalars are prepared in float64.
/// Moves 28 bytes per parameter, 30 with a 16-bit copy; bound by memory.
/// Source: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

struct AdamWStep {
    TensorView param;        ///< [N] in and out, float32
    TensorView exp_avg;      ///< [N] in and out, float32
    TensorView exp_avg_sq;   ///< [N] in and out, float32
    TensorView model_param;  ///< [N] out, float32, bfloat16 or float16; optional
    TensorView grad;         ///< [N] float32
    double lr = 0.0;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double weight_decay = 0.0;
    double grad_scale = 1.0;  ///< Multiplies the gradient: clipping and loss scale.
    std::int64_t step = 1;    ///< Counts from 1.
};

/// The scalars of a step as the kernels use them.
struct AdamWFactors {
    float grad_scale;
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float keep;           ///< 1 - lr * weight_decay
    float step_size;      ///< lr / (1 - beta1^step)
    float inv_sqrt_bias;  ///< 1 / sqrt(1 - beta2^step)
    float eps;
};

AdamWFactors factors(const AdamWStep& args);

/// Throws when a tensor or scalar is out of contract; the message names it.
void check(const AdamWStep& args);

namespace cpu {
void adamw_step(const AdamWStep& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void adamw_step(const AdamWStep& args, void* stream);
}  // namespace cuda

}  // namespace megacore
