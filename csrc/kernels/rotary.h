/// Rotary position embedding: pairs of lanes of every head are turned by the angles of its token.
///
///   (a, b) -> (a cos - b sin, b cos + a sin)
///
/// The pairs of the first `dim` lanes are (i, i + dim / 2), or (2 i, 2 i + 1) when interleaved; the
/// other lanes stay as they are.
///
/// Forward reads `packed`, the output of a query/key/value projection, and writes q, k and v, of
/// which v is only copied; without k and v, `packed` holds heads to turn only. Backward reads the
/// gradients of q, k and v and writes that of `packed`, which is the opposite rotation.
///
/// T tokens, G groups of R query heads, head size D. packed, q, k, v: one dtype, float32, bfloat16
/// or float16, each read or written once; cos and sin: float32. Arithmetic is float32 with one
/// rounding per lane. Determinism: bitwise.
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, 3.2.2.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

inline constexpr std::int64_t kMaxRotaryDim = 1024;

struct Rotary {
    TensorView packed;  ///< [T, G, R + 2, D] contiguous; [T, G, R, D] without k and v
    TensorView q;       ///< [T, G, R, D] contiguous
    TensorView k;       ///< [T, G, D] contiguous; present exactly with v
    TensorView v;       ///< [T, G, D] contiguous
    TensorView cos;     ///< [P, dim / 2] contiguous; P divides T, token t has the angles of t % P
    TensorView sin;     ///< [P, dim / 2] contiguous
    bool interleaved = false;
    bool backward = false;  ///< From q, k, v to packed, by the opposite angles.
};

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const Rotary& args);

namespace cpu {
void rotary(const Rotary& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void rotary(const Rotary& args, void* stream);
}  // namespace cuda

}  // namespace megacore
