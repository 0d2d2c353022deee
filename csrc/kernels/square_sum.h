/// Sum of the squares of a flat buffer: the norm of gradients, and whether all of them are finite.
///
///   sum = x[0]^2 + x[1]^2 + ...        not finite if any element is not
///
/// Squares are added in float32 over blocks of a fixed number of elements, the sums of the blocks
/// in float64, both in an order that depends on N alone: bitwise the same for any number of
/// threads. An element of more than 1.8e19 counts as infinite.
/// Moves every element once; bound by memory.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace megacore {

/// Elements whose squares are added in float32.
inline constexpr std::int64_t kSquareSumBlock = 2048;

struct SquareSum {
    TensorView sum;        ///< [1] out, float64
    TensorView x;          ///< [N] float32, bfloat16 or float16
    TensorView workspace;  ///< [square_sum_workspace(N)] float64
};

/// Elements of the workspace.
std::int64_t square_sum_workspace(std::int64_t size);

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const SquareSum& args);

namespace cpu {
void square_sum(const SquareSum& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void square_sum(const SquareSum& args, void* stream);
}  // namespace cuda

}  // namespace megacore
