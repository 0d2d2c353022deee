// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/dropout_add.h"

#include "core/check.h"
#include "kernels/dropout_add_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {

void check(const DropoutAdd& args) {
    check_shape(args.x, {-1});
    check_dtype(args.x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    for (const TensorView* tensor : {&args.x, &args.out, &args.residual}) {
        if (tensor == &args.residual && !tensor->present()) continue;
        check_shape(*tensor, {args.x.sizes[0]});
        check_dtype(*tensor, {args.x.dtype});
        check_contiguous(*tensor);
    }
    MEGACORE_CHECK(
        args.drop >= 0.0 && args.drop <= 1.0, "drop: expected a probability, found ", args.drop);
}

namespace cpu {

MEGACORE_ISA_TABLE(DropoutAddKernels, dropout_add_kernels)

void dropout_add(const DropoutAdd& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_dropout_add_kernels().dropout_add(args);
}

}  // namespace cpu
}  // namespace megacore
