/// Softmax of attention scores with their scale and their masks.
///
///   y[b, h, i, j] = exp(s[j] - max s) / sum over seen k of exp(s[k] - max s),   s = scale * x[b,
///   h, i]
///                   0 where j is not seen, and in rows that see nothing
///   dx            = scale * y * (dy - sum over k of dy[k] * y[k])
///
/// Row i sees column j unless mask[b, h, i, j] is true, and with `causal` only where
/// j <= i + offset, and with a window of W > 0 only where j > i + offset - W. So offset = 0 is a
/// square of scores; offset = K - Q aligns the last query with the last key.
///
/// x, y: float32, bfloat16 or float16, [B, H, Q, K] contiguous; arithmetic is float32 with one
/// rounding. Bound by memory: forward reads x and writes y once, backward reads two and writes one;
/// hidden columns of causal rows are written only. y may be x, and dx may be dy. Determinism:
/// bitwise; the order of every sum depends on K and on what the row sees only.
/// Source: Shoeybi et al., "Megatron-LM", 2019 (fused scale, mask and softmax).
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"
#include "core/tensor_view.h"

namespace megacore {

/// What a row of scores sees by its position; the columns are a range.
struct SoftmaxRange {
    bool causal = false;
    std::int64_t offset = 0;
    std::int64_t window = 0;  ///< 0 for none.

    /// First seen column of row i of `columns`, in [0, columns].
    MEGACORE_HOST_DEVICE std::int64_t begin(std::int64_t i, std::int64_t columns) const {
        if (!causal || window == 0) return 0;
        const std::int64_t first = i + offset - window + 1;
        return first < 0 ? 0 : first > columns ? columns : first;
    }
    /// Behind the last one; not below begin.
    MEGACORE_HOST_DEVICE std::int64_t end(std::int64_t i, std::int64_t columns) const {
        if (!causal) return columns;
        const std::int64_t last = i + offset + 1;
        return last < 0 ? 0 : last > columns ? columns : last;
    }
};

struct SoftmaxForward {
    TensorView y;     ///< [B, H, Q, K] out
    TensorView x;     ///< [B, H, Q, K], K at least 1
    TensorView mask;  ///< [B or 1, H or 1, Q or 1, K] bool, true hides; optional; last axis dense
    double scale = 1.0;
    SoftmaxRange range;
};

struct SoftmaxBackward {
    TensorView dx;  ///< [B, H, Q, K] out
    TensorView dy;  ///< [B, H, Q, K]
    TensorView y;   ///< [B, H, Q, K]
    double scale = 1.0;
    SoftmaxRange range;  ///< That of forward; where y is zero anyway it only saves work.
};

/// Throw when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const SoftmaxForward& args);
void check(const SoftmaxBackward& args);

/// Elements between a row of scores and the next along B, H and Q of the mask; 0 where it has one.
struct SoftmaxMaskStrides {
    std::int64_t batch = 0;
    std::int64_t head = 0;
    std::int64_t query = 0;

    static SoftmaxMaskStrides of(const TensorView& mask) {
        const auto stride = [&](int dim) { return mask.sizes[dim] == 1 ? 0 : mask.strides[dim]; };
        return mask.present() ? SoftmaxMaskStrides{stride(0), stride(1), stride(2)}
                              : SoftmaxMaskStrides{};
    }
};

namespace cpu {
void softmax_forward(const SoftmaxForward& args);
void softmax_backward(const SoftmaxBackward& args);
}  // namespace cpu

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void softmax_forward(const SoftmaxForward& args, void* stream);
void softmax_backward(const SoftmaxBackward& args, void* stream);
}  // namespace cuda

}  // namespace megacore
