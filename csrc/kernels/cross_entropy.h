/// Cross entropy over a vocabulary, or over the part of it that one process has, in two halves with
/// the caller between them: forward gives sums over the columns here, which the caller may exchange
/// with the processes that have the other columns, and makes losses of; backward writes the
/// gradient.
///
///   largest[m] = max over j of x[m, j]
///   total[m]   = sum over j of exp(x[m, j] - largest[m])
///                (0 where all of them are minus infinity)
///   chosen[m]  = x[m, t], t = labels[m] - first_column; 0 where t is not one of the columns
///   sum[m]     = sum over j of x[m, j]                     (for label smoothing; optional)
///
///   dx[m, j]   = exp(x[m, j] - largest[m]) * factor[m] - uniform[m] - (j == t ? at_label[m] : 0)
///
/// With g = dloss: factor = g / total for the plain loss log(total) + largest - chosen, and
/// at_label = g, uniform = 0. Label smoothing and z-loss change these three vectors only.
///
/// x: float32, bfloat16 or float16, M rows of V columns; vectors: float32; labels: int64. dx may be
/// x itself. Sums are float32. Bound by memory: forward reads x once, backward reads and writes it.
/// Determinism: bitwise; the order of every sum depends on V only.
/// Source: Shoeybi et al., "Megatron-LM", 2019, section 3; Szegedy et al., "Rethinking the
/// Inception Architecture", 2016 (label smoothing); de Brebisson, Vincent, "The Z-loss", 2016.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

struct CrossEntropyForward {
    TensorView largest;  ///< [M] out
    TensorView total;    ///< [M] out
    TensorView chosen;   ///< [M] out
    TensorView sum;      ///< [M] out; optional
    TensorView logits;   ///< [M, V] contiguous, V at least 1
    TensorView labels;   ///< [M] int64
    std::int64_t first_column = 0;
};

struct CrossEntropyBackward {
    TensorView dlogits;   ///< [M, V] out, dtype of logits, contiguous; may be logits
    TensorView logits;    ///< [M, V] contiguous, V at least 1
    TensorView labels;    ///< [M] int64
    TensorView largest;   ///< [M]
    TensorView factor;    ///< [M]
    TensorView at_label;  ///< [M]
    TensorView uniform;   ///< [M]; optional
    std::int64_t first_column = 0;
};

/// Throw when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const CrossEntropyForward& args);
void check(const CrossEntropyBackward& args);

namespace cpu {
void cross_entropy_forward(const CrossEntropyForward& args);
void cross_entropy_backward(const CrossEntropyBackward& args);
}  // namespace cpu

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void cross_entropy_forward(const CrossEntropyForward& args, void* stream);
void cross_entropy_backward(const CrossEntropyBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
