/// torch.ops.megacore.activation_*.
#pragma once

#include "bindings/op_views.h"
#include "kernels/activation.h"

namespace megacore::bindings {

/// out [..., F] of x [..., W].
template <class Backend>
Tensor activation_forward(const Tensor& x,
                          const std::optional<Tensor>& bias,
                          std::int64_t activation,
                          bool gated) {
    const NvtxRange range("megacore::activation_forward");
    const Backend backend(x);
    ActivationForward args{.x = rows("x", x), .bias = view("bias", bias)};
    args.activation = static_cast<Activation>(activation);
    args.gated = gated;
    const std::int64_t inner = args.x.sizes[1] / (gated ? 2 : 1);
    std::vector<std::int64_t> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = inner;
    Tensor out = torch::stable::new_empty(x, sizes);
    args.out = contiguous_view("out", out.data_ptr(), args.x.dtype, {args.x.sizes[0], inner});
    backend.activation_forward(args);
    return out;
}

/// dx, dbias (no elements without a bias).
template <class Backend>
std::tuple<Tensor, Tensor> activation_backward(const Tensor& dout,
                                               const Tensor& x,
                                               const std::optional<Tensor>& bias,
                                               std::int64_t activation,
                                               bool gated) {
    const NvtxRange range("megacore::activation_backward");
    const Backend backend(x);
    ActivationBackward args{.dout = rows("dout", dout), .x = rows("x", x)};
    const std::int64_t num_rows = args.x.sizes[0];
    const std::int64_t width = args.x.sizes[1];
    Tensor dx = torch::stable::empty_like(x);
    Tensor dbias = torch::stable::new_empty(x, {bias.has_value() ? width : 0});
    const std::int64_t floats =
        bias.has_value() ? Backend::activation_backward_workspace(num_rows, width) : 0;
    Tensor workspace = torch::stable::new_empty(x, {floats}, ScalarType::Float);
    args.dx = rows("dx", dx);
    args.bias = view("bias", bias);
    if (bias.has_value()) {
        args.dbias = view("dbias", dbias);
        args.workspace = view("workspace", workspace);
    }
    args.activation = static_cast<Activation>(activation);
    args.gated = gated;
    backend.activation_backward(args);
    return {std::move(dx), std::move(dbias)};
}

}  // namespace megacore::bindings
