// Checks shared by the CPU and the CUDA kernel, and the choice of CPU version.
#include "kernels/sgd.h"

#include "core/check.h"
#include "kernels/isa_table.h"
#include "kernels/sgd_cpu.h"

namespace megacore {

void check(const SgdStep& args) {
    check_shape(args.param, {-1});
    for (const TensorView* tensor : {&args.param, &args.grad, &args.momentum_buffer}) {
        if (tensor == &args.momentum_buffer && !tensor->present()) continue;
        check_shape(*tensor, {args.param.sizes[0]});
        check_dtype(*tensor, {DType::kFloat32});
        check_contiguous(*tensor);
    }
    if (args.model_param.present()) {
        check_shape(args.model_param, {args.param.sizes[0]});
        check_dtype(args.model_param, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
        check_contiguous(args.model_param);
    }
    MEGACORE_CHECK(args.momentum >= 0.0 && args.momentum < 1.0,
                   "momentum: expected [0, 1), found ",
                   args.momentum);
    MEGACORE_CHECK(args.momentum == 0.0 || args.momentum_buffer.present(),
                   "momentum_buffer: needed with a momentum of ",
                   args.momentum);
}

namespace cpu {

MEGACORE_ISA_TABLE(SgdKernels, sgd_kernels)

void sgd_step(const SgdStep& args) {
    check(args);
    if (args.param.numel() == 0) return;
    active_sgd_kernels().step(args);
}

}  // namespace cpu
}  // namespace megacore
