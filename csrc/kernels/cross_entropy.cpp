// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/cross_entropy.h"

#include "core/check.h"
#include "kernels/cross_entropy_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {
namespace {

void check_logits(const TensorView& logits, const TensorView& labels) {
    check_shape(logits, {-1, -1});
    check_dtype(logits, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_contiguous(logits);
    MEGACORE_CHECK(logits.sizes[0] == 0 || logits.sizes[1] > 0,
                   "logits: expected at least one column, found ",
                   describe(logits));
    check_shape(labels, {logits.sizes[0]});
    check_dtype(labels, {DType::kInt64});
    check_contiguous(labels);
}

void check_vector(const TensorView& tensor, const TensorView& logits) {
    check_shape(tensor, {logits.sizes[0]});
    check_dtype(tensor, {DType::kFloat32});
    check_contiguous(tensor);
}

}  // namespace

void check(const CrossEntropyForward& args) {
    check_logits(args.logits, args.labels);
    check_vector(args.largest, args.logits);
    check_vector(args.total, args.logits);
    check_vector(args.chosen, args.logits);
    if (args.sum.present()) check_vector(args.sum, args.logits);
}

void check(const CrossEntropyBackward& args) {
    check_logits(args.logits, args.labels);
    check_shape(args.dlogits, {args.logits.sizes[0], args.logits.sizes[1]});
    check_dtype(args.dlogits, {args.logits.dtype});
    check_contiguous(args.dlogits);
    check_vector(args.largest, args.logits);
    check_vector(args.factor, args.logits);
    check_vector(args.at_label, args.logits);
    if (args.uniform.present()) check_vector(args.uniform, args.logits);
}

namespace cpu {

MEGACORE_ISA_TABLE(CrossEntropyKernels, cross_entropy_kernels)

void cross_entropy_forward(const CrossEntropyForward& args) {
    check(args);
    if (args.logits.numel() == 0) return;
    active_cross_entropy_kernels().forward(args);
}

void cross_entropy_backward(const CrossEntropyBackward& args) {
    check(args);
    if (args.logits.numel() == 0) return;
    active_cross_entropy_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
