// Checks shared by the CPU and the CUDA kernel, and the choice of CPU version.
#include "kernels/square_sum.h"

#include "core/check.h"
#include "core/math.h"
#include "kernels/isa_table.h"
#include "kernels/square_sum_cpu.h"

namespace megacore {

std::int64_t square_sum_workspace(std::int64_t size) { return ceil_div(size, kSquareSumBlock); }

void check(const SquareSum& args) {
    check_shape(args.x, {-1});
    check_dtype(args.x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_contiguous(args.x);
    check_shape(args.sum, {1});
    check_dtype(args.sum, {DType::kFloat64});
    check_shape(args.workspace, {square_sum_workspace(args.x.sizes[0])});
    check_dtype(args.workspace, {DType::kFloat64});
    check_contiguous(args.workspace);
}

namespace cpu {

MEGACORE_ISA_TABLE(SquareSumKernels, square_sum_kernels)

void square_sum(const SquareSum& args) {
    check(args);
    active_square_sum_kernels().blocks(args);
    double sum = 0.0;
    for (std::int64_t i = 0; i < args.workspace.sizes[0]; ++i) {
        sum += args.workspace.as<double>()[i];
    }
    *args.sum.as<double>() = sum;
}

}  // namespace cpu
}  // namespace megacore
