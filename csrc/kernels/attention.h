/// Attention without a matrix of scores, its gradients, and the logarithms that put parts together.
///
///   s[b, i, h, j]  = scale * sum over d of q[b, i, h, d] * k[b, j, g, d],     g the group of head
///   h log_sum[b,i,h] = log of the sum over seen j of exp(s[j])                  (-inf: sees
///   nothing) w[j]           = exp(s[j] - log_sum), then dropout: 0, or w[j] / (1 - p) out[b, i, h]
///   = sum over seen j of w[j] * v[b, j, g]                     (0: sees nothing)
///
/// Query i sees keys as AttentionRange says: causal (the last query with the last key), a window,
/// documents packed behind each other, and caches that are filled to different lengths. Element
/// (b, h, i, j) of the weights draws the number that dropout_add.h gives to it in a contiguous
/// tensor [B, H, Sq, Sk].
///
/// q: [B, Sq, G, R, D], R query heads a group; k, v: [B, Sk, G, D]; any strides, the last axis
/// dense; float32, bfloat16 or float16. D is 1 to 256. Scores, weights and sums are float32 (on
/// CUDA weights and their gradients are rounded to the dtype of q for the second products). Memory
/// beyond results: none that grows with Sq * Sk. Bound by arithmetic: 4 * D operations a seen score
/// forward, 10 * D backward. Determinism: bitwise, for any number of threads.
/// Source: Dao, "FlashAttention-2", 2023; Milakov, Gimelshein, "Online normalizer calculation for
/// softmax", 2018; Child et al., "Sparse Transformers", 2019 (windows).
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

inline constexpr std::int64_t kMaxAttentionHead = 256;

/// What is seen, and the constants.
struct AttentionRule {
    TensorView documents;    ///< [n + 1] int64 from 0 to Sq = Sk, B = 1; optional
    TensorView key_lengths;  ///< [B] int64: keys behind these do not count; optional
    bool causal = false;
    std::int64_t window = 0;  ///< With causal: only the last so many keys; 0 for all.
    double scale = 1.0;
    double drop = 0.0;  ///< p, rounded to a multiple of 2^-24
    std::uint64_t seed = 0;
};

struct AttentionForward {
    TensorView out;      ///< [B, Sq, G, R, D] out
    TensorView log_sum;  ///< [B, Sq, G, R] float32 out, contiguous
    TensorView q;        ///< [B, Sq, G, R, D]
    TensorView k;        ///< [B, Sk, G, D]
    TensorView v;        ///< [B, Sk, G, D]
    AttentionRule rule;
    TensorView workspace;  ///< [attention_forward_workspace] float32
};

/// dq, dk and dv of the whole softmax, or of the part of it whose keys are given, when out and
/// log_sum are those of all keys.
struct AttentionBackward {
    TensorView dq;       ///< [B, Sq, G, R, D] out
    TensorView dk;       ///< [B, Sk, G, D] out
    TensorView dv;       ///< [B, Sk, G, D] out
    TensorView dout;     ///< [B, Sq, G, R, D]
    TensorView q;        ///< [B, Sq, G, R, D]
    TensorView k;        ///< [B, Sk, G, D]
    TensorView v;        ///< [B, Sk, G, D]
    TensorView out;      ///< [B, Sq, G, R, D]
    TensorView log_sum;  ///< [B, Sq, G, R] float32, contiguous
    AttentionRule rule;
    TensorView workspace;  ///< [attention_backward_workspace] float32
};

/// Throw when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const AttentionForward& args);
void check(const AttentionBackward& args);

namespace cpu {
/// Floats of workspace for checked arguments but for the workspace.
std::int64_t attention_forward_workspace(const AttentionForward& args);
std::int64_t attention_backward_workspace(const AttentionBackward& args);
void attention_forward(const AttentionForward& args);
void attention_backward(const AttentionBackward& args);
}  // namespace cpu

namespace cuda {
/// float32 is refused: PyTorch's kernels have it. `stream` is a cudaStream_t. Nothing is
/// synchronized.
std::int64_t attention_forward_workspace(const AttentionForward& args);
std::int64_t attention_backward_workspace(const AttentionBackward& args);
void attention_forward(const AttentionForward& args, void* stream);
void attention_backward(const AttentionBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
