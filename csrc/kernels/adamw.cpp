// Checks and scalars shared by the CPU and the CUDA kernel, and the choice of CPU version.
#include "kernels/adamw.h"

#include <cmath>

#include "core/check.h"
#include "kernels/adamw_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {

AdamWFactors factors(const AdamWStep& args) {
    const double step = static_cast<double>(args.step);
    const double bias1 = 1.0 - std::pow(args.beta1, step);
    const double bias2 = 1.0 - std::pow(args.beta2, step);
    return {
        .grad_scale = static_cast<float>(args.grad_scale),
        .beta1 = static_cast<float>(args.beta1),
        .one_minus_beta1 = static_cast<float>(1.0 - args.beta1),
        .beta2 = static_cast<float>(args.beta2),
        .one_minus_beta2 = static_cast<float>(1.0 - args.beta2),
        .keep = static_cast<float>(1.0 - args.lr * args.weight_decay),
        .step_size = static_cast<float>(args.lr / bias1),
        .inv_sqrt_bias = static_cast<float>(1.0 / std::sqrt(bias2)),
        .eps = static_cast<float>(args.eps),
    };
}

void check(const AdamWStep& args) {
    check_shape(args.param, {-1});
    for (const TensorView* tensor : {&args.param, &args.grad, &args.exp_avg, &args.exp_avg_sq}) {
        check_shape(*tensor, {args.param.sizes[0]});
        check_dtype(*tensor, {DType::kFloat32});
        check_contiguous(*tensor);
    }
    if (args.model_param.present()) {
        check_shape(args.model_param, {args.param.sizes[0]});
        check_dtype(args.model_param, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
        check_contiguous(args.model_param);
    }
    MEGACORE_CHECK(args.step >= 1, "step: counts from 1, found ", args.step);
    MEGACORE_CHECK(
        args.beta1 >= 0.0 && args.beta1 < 1.0, "beta1: expected [0, 1), found ", args.beta1);
    MEGACORE_CHECK(
        args.beta2 >= 0.0 && args.beta2 < 1.0, "beta2: expected [0, 1), found ", args.beta2);
    MEGACORE_CHECK(args.eps >= 0.0, "eps: expected at least 0, found ", args.eps);
}

namespace cpu {

MEGACORE_ISA_TABLE(AdamWKernels, adamw_kernels)

void adamw_step(const AdamWStep& args) {
    check(args);
    if (args.param.numel() == 0) return;
    active_adamw_kernels().step(args);
}

}  // namespace cpu
}  // namespace megacore
