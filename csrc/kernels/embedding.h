/// Gradient of a lookup in a table: row r is the sum of the gradients of the tokens that took it.
///
///   dtable[r] = sum over i with sorted[i] = r, in this order, of dout[order[i]]
///
/// `sorted` holds the tokens' rows in ascending order and `order` where each of them came from, as
/// a stable sort gives them: the sum then has the order of the tokens. Every element of dtable is
/// written, with zeros where no token took the row; numbers outside [0, V) count nowhere. With
/// `accumulate` the sums are added to dtable, and rows that no token took are not touched.
///
/// M tokens, V rows of H elements. dout: float32, bfloat16 or float16; dtable: the same dtype, or
/// float32 with `accumulate`; sums are float32. Bound by memory: dout is read once, and dtable is
/// written once; with `accumulate` its rows that occur are read and written.
/// Determinism: bitwise. On CUDA one block adds up a row, so a token that is much more frequent
/// than the others sets the time.
#pragma once

#include "core/tensor_view.h"

namespace megacore {

struct EmbeddingBackward {
    TensorView dtable;  ///< [V, H] out, or in and out, contiguous
    TensorView dout;    ///< [M, H] contiguous
    TensorView sorted;  ///< [M] int64, ascending
    TensorView order;   ///< [M] int64, a permutation of 0 to M - 1
    bool accumulate = false;
};

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const EmbeddingBackward& args);

namespace cpu {
void embedding_backward(const EmbeddingBackward& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void embedding_backward(const EmbeddingBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
