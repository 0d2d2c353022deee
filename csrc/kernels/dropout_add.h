/// Dropout of a branch and the addition of the residual stream.
///
///   out[i] = residual[i] + (kept(i) ? x[i] / (1 - p) : 0)      (residual absent: without it)
///
/// kept(i) is a function of seed and i alone: element i takes word i % 4 of the Philox numbers at
/// counter i / 4 of the stream `seed`, and is kept when its upper 24 bits are at least the
/// probability p in units of 2^-24 (p is rounded to a multiple of that). So no mask is stored, it
/// is the same on CPU and CUDA, and backward is the same op on dout without a residual.
///
/// N elements, contiguous, one dtype: float32, bfloat16 or float16; arithmetic is float32 with one
/// rounding. Bound by memory: 3 elements moved per element, 2 without residual. Determinism:
/// bitwise.
/// Source: Srivastava et al., "Dropout", 2014.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/tensor_view.h"

namespace megacore {

struct DropoutAdd {
    TensorView out;       ///< [N] out
    TensorView x;         ///< [N]
    TensorView residual;  ///< [N]; optional
    double drop = 0.0;    ///< p, in [0, 1]
    std::uint64_t seed = 0;
};

/// p in units of 2^-24, and the factor of what is kept; derived from the arguments.
struct DropoutFactors {
    std::uint32_t threshold;
    float scale;

    static DropoutFactors of(const DropoutAdd& args) {
        const auto threshold = static_cast<std::uint32_t>(args.drop * 0x1p24 + 0.5);
        const bool all = threshold >= (1u << 24);
        return {threshold, all ? 0.0f : static_cast<float>(1.0 / (1.0 - threshold * 0x1p-24))};
    }
};

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const DropoutAdd& args);

namespace cpu {
void dropout_add(const DropoutAdd& args);
}

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void dropout_add(const DropoutAdd& args, void* stream);
}  // namespace cuda

}  // namespace megacore
