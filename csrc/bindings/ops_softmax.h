/// torch.ops.megacore.softmax_*.
#pragma once

#include "bindings/op_views.h"
#include "kernels/softmax.h"

namespace megacore::bindings {

/// Softmax of scores x [B, H, Q, K].
template <class Backend>
Tensor softmax_forward(const Tensor& x,
                       const std::optional<Tensor>& mask,
                       double scale,
                       bool causal,
                       std::int64_t offset,
                       std::int64_t window) {
    const NvtxRange range("megacore::softmax_forward");
    const Backend backend(x);
    Tensor y = torch::stable::empty_like(x);
    backend.softmax_forward({.y = view("y", y),
                             .x = view("x", x),
                             .mask = view("mask", mask),
                             .scale = scale,
                             .range = {causal, offset, window}});
    return y;
}

template <class Backend>
Tensor softmax_backward(const Tensor& dy,
                        const Tensor& y,
                        double scale,
                        bool causal,
                        std::int64_t offset,
                        std::int64_t window) {
    const NvtxRange range("megacore::softmax_backward");
    const Backend backend(y);
    Tensor dx = torch::stable::empty_like(y);
    backend.softmax_backward({.dx = view("dx", dx),
                              .dy = view("dy", dy),
                              .y = view("y", y),
                              .scale = scale,
                              .range = {causal, offset, window}});
    return dx;
}

}  // namespace megacore::bindings
