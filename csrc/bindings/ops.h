/// torch.ops.megacore.*: from torch's stable tensors to the kernels' views, for any backend.
///
/// A Backend gives the kernels of one device and says where work is queued; ops_cpu.cpp and
/// ops_cuda.cpp each register all ops for theirs. The schemas are defined in python/megacore/ops.
#pragma once

#include "bindings/op_views.h"
#include "bindings/ops_activation.h"
#include "bindings/ops_attention.h"
#include "bindings/ops_cross_entropy.h"
#include "bindings/ops_dropout_add.h"
#include "bindings/ops_embedding.h"
#include "bindings/ops_fp8.h"
#include "bindings/ops_optimizer.h"
#include "bindings/ops_rotary.h"
#include "bindings/ops_softmax.h"
#include "kernels/adamw.h"
#include "kernels/norm.h"

namespace megacore::bindings {

/// y, mean (no elements for RMSNorm), rstd.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x,
                                                const Tensor& weight,
                                                const std::optional<Tensor>& bias,
                                                double eps,
                                                bool zero_centered,
                                                bool subtract_mean) {
    const NvtxRange range("megacore::norm_forward");
    const Backend backend(x);
    NormForward args{.x = rows("x", x), .weight = view("weight", weight)};
    const std::int64_t num_rows = args.x.sizes[0];
    Tensor out = torch::stable::empty_like(x);
    Tensor mean = torch::stable::new_empty(x, {subtract_mean ? num_rows : 0}, ScalarType::Float);
    Tensor rstd = torch::stable::new_empty(x, {num_rows}, ScalarType::Float);
    args.out = rows("out", out);
    if (subtract_mean) args.mean = view("mean", mean);
    args.rstd = view("rstd", rstd);
    args.bias = view("bias", bias);
    args.eps = static_cast<float>(eps);
    args.zero_centered = zero_centered;
    backend.norm_forward(args);
    return {std::move(out), std::move(mean), std::move(rstd)};
}

/// dx, dweight, dbias (no elements unless has_bias).
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& dout,
                                                 const Tensor& x,
                                                 const Tensor& weight,
                                                 const Tensor& mean,
                                                 const Tensor& rstd,
                                                 bool zero_centered,
                                                 bool subtract_mean,
                                                 bool has_bias) {
    const NvtxRange range("megacore::norm_backward");
    const Backend backend(x);
    NormBackward args{.dout = rows("dout", dout), .x = rows("x", x)};
    const std::int64_t hidden = args.x.sizes[1];
    const std::int64_t workspace_size = Backend::norm_backward_workspace(args.x.sizes[0], hidden);
    Tensor dx = torch::stable::empty_like(x);
    Tensor dweight = torch::stable::empty_like(weight);
    Tensor dbias = torch::stable::new_empty(weight, {has_bias ? hidden : 0});
    Tensor workspace = torch::stable::new_empty(x, {workspace_size}, ScalarType::Float);
    args.dx = rows("dx", dx);
    args.dweight = view("dweight", dweight);
    if (has_bias) args.dbias = view("dbias", dbias);
    args.weight = view("weight", weight);
    if (subtract_mean) args.mean = view("mean", mean);
    args.rstd = view("rstd", rstd);
    args.zero_centered = zero_centered;
    args.workspace = view("workspace", workspace);
    backend.norm_backward(args);
    return {std::move(dx), std::move(dweight), std::move(dbias)};
}

template <class Backend>
void adamw_step(const Tensor& param,
                const Tensor& exp_avg,
                const Tensor& exp_avg_sq,
                const std::optional<Tensor>& model_param,
                const Tensor& grad,
                double lr,
                double beta1,
                double beta2,
                double eps,
                double weight_decay,
                std::int64_t step,
                double grad_scale) {
    const NvtxRange range("megacore::adamw_step");
    const Backend backend(param);
    backend.adamw_step({
        .param = view("param", param),
        .exp_avg = view("exp_avg", exp_avg),
        .exp_avg_sq = view("exp_avg_sq", exp_avg_sq),
        .model_param = view("model_param", model_param),
        .grad = view("grad", grad),
        .lr = lr,
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .weight_decay = weight_decay,
        .grad_scale = grad_scale,
        .step = step,
    });
}

template <class Backend>
void register_ops(torch::stable::detail::StableLibrary& library) {
    library.impl("norm_forward", TORCH_BOX(&norm_forward<Backend>));
    library.impl("norm_backward", TORCH_BOX(&norm_backward<Backend>));
    library.impl("adamw_step", TORCH_BOX(&adamw_step<Backend>));
    library.impl("activation_forward", TORCH_BOX(&activation_forward<Backend>));
    library.impl("activation_backward", TORCH_BOX(&activation_backward<Backend>));
    library.impl("rotary_turn", TORCH_BOX(&rotary_turn<Backend>));
    library.impl("rotary_split", TORCH_BOX(&rotary_split<Backend>));
    library.impl("rotary_join", TORCH_BOX(&rotary_join<Backend>));
    library.impl("cross_entropy_sums", TORCH_BOX(&cross_entropy_sums<Backend>));
    library.impl("cross_entropy_gradient_", TORCH_BOX(&cross_entropy_gradient_<Backend>));
    library.impl("embedding_gradient", TORCH_BOX(&embedding_gradient<Backend>));
    library.impl("embedding_gradient_add_", TORCH_BOX(&embedding_gradient_add_<Backend>));
    library.impl("attention_forward", TORCH_BOX(&attention_forward<Backend>));
    library.impl("attention_backward", TORCH_BOX(&attention_backward<Backend>));
    library.impl("softmax_forward", TORCH_BOX(&softmax_forward<Backend>));
    library.impl("softmax_backward", TORCH_BOX(&softmax_backward<Backend>));
    library.impl("sgd_step", TORCH_BOX(&sgd_step<Backend>));
    library.impl("square_sum", TORCH_BOX(&square_sum<Backend>));
    library.impl("fp8_quantize", TORCH_BOX(&fp8_quantize<Backend>));
    library.impl("fp8_quantize_blocks", TORCH_BOX(&fp8_quantize_blocks<Backend>));
    library.impl("dropout_add", TORCH_BOX(&dropout_add<Backend>));
}

}  // namespace megacore::bindings
