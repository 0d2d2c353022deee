// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/norm.h"

#include "core/check.h"
#include "kernels/isa_table.h"
#include "kernels/norm_cpu.h"

namespace megacore {
namespace {

void check_parameters(const TensorView& x, const TensorView& weight) {
    check_dtype(x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    if (x.dtype == DType::kFloat32) {
        check_dtype(weight, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    } else {
        check_dtype(weight, {DType::kFloat32, x.dtype});
    }
}

void check_rows(const TensorView& tensor, const TensorView& x) {
    check_shape(tensor, {x.sizes[0], x.sizes[1]});
    check_dtype(tensor, {x.dtype});
    check_contiguous(tensor);
}

void check_column_vector(const TensorView& tensor, const TensorView& x, DType dtype) {
    check_shape(tensor, {x.sizes[1]});
    check_dtype(tensor, {dtype});
    check_contiguous(tensor);
}

void check_statistics(const TensorView& tensor, const TensorView& x) {
    check_shape(tensor, {x.sizes[0]});
    check_dtype(tensor, {DType::kFloat32});
    check_contiguous(tensor);
}

}  // namespace

void check(const NormForward& args) {
    check_shape(args.x, {-1, -1});
    check_parameters(args.x, args.weight);
    check_rows(args.x, args.x);
    check_rows(args.out, args.x);
    check_column_vector(args.weight, args.x, args.weight.dtype);
    if (args.bias.present()) {
        MEGACORE_CHECK(args.mean.present(), "RMSNorm takes no bias, found ", describe(args.bias));
        check_column_vector(args.bias, args.x, args.weight.dtype);
    }
    if (args.mean.present()) check_statistics(args.mean, args.x);
    check_statistics(args.rstd, args.x);
    MEGACORE_CHECK(args.eps >= 0.0f, "eps: expected at least 0, found ", args.eps);
}

void check(const NormBackward& args) {
    check_shape(args.x, {-1, -1});
    check_parameters(args.x, args.weight);
    check_rows(args.x, args.x);
    check_rows(args.dout, args.x);
    check_rows(args.dx, args.x);
    check_column_vector(args.weight, args.x, args.weight.dtype);
    check_column_vector(args.dweight, args.x, args.weight.dtype);
    if (args.dbias.present()) check_column_vector(args.dbias, args.x, args.weight.dtype);
    if (args.mean.present()) check_statistics(args.mean, args.x);
    check_statistics(args.rstd, args.x);
    check_dtype(args.workspace, {DType::kFloat32});
}

namespace cpu {

MEGACORE_ISA_TABLE(NormKernels, norm_kernels)

void norm_forward(const NormForward& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_norm_kernels().forward(args);
}

std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden) {
    return 2 * norm_backward_chunks(num_rows) * hidden;
}

void norm_backward(const NormBackward& args) {
    check(args);
    check_shape(args.workspace, {norm_backward_workspace(args.x.sizes[0], args.x.sizes[1])});
    if (args.x.sizes[1] == 0) return;
    active_norm_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
