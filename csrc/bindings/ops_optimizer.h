/// torch.ops.megacore.sgd_step and square_sum.
#pragma once

#include "bindings/op_views.h"
#include "kernels/sgd.h"
#include "kernels/square_sum.h"

namespace megacore::bindings {

template <class Backend>
void sgd_step(const Tensor& param,
              const std::optional<Tensor>& momentum_buffer,
              const std::optional<Tensor>& model_param,
              const Tensor& grad,
              double lr,
              double momentum,
              double weight_decay,
              double grad_scale) {
    const NvtxRange range("megacore::sgd_step");
    const Backend backend(param);
    backend.sgd_step({
        .param = view("param", param),
        .momentum_buffer = view("momentum_buffer", momentum_buffer),
        .model_param = view("model_param", model_param),
        .grad = view("grad", grad),
        .lr = lr,
        .momentum = momentum,
        .weight_decay = weight_decay,
        .grad_scale = grad_scale,
    });
}

/// The sum of the squares, [1] float64.
template <class Backend>
Tensor square_sum(const Tensor& x) {
    const NvtxRange range("megacore::square_sum");
    const Backend backend(x);
    SquareSum args{.x = view("x", x)};
    MEGACORE_CHECK(args.x.rank == 1, "x: expected [N], found ", describe(args.x));
    Tensor sum = torch::stable::new_empty(x, {1}, ScalarType::Double);
    Tensor workspace =
        torch::stable::new_empty(x, {square_sum_workspace(args.x.sizes[0])}, ScalarType::Double);
    args.sum = view("sum", sum);
    args.workspace = view("workspace", workspace);
    backend.square_sum(args);
    return sum;
}

}  // namespace megacore::bindings
