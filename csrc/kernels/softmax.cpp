// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/softmax.h"

#include "core/check.h"
#include "kernels/isa_table.h"
#include "kernels/softmax_cpu.h"

namespace megacore {
namespace {

void check_scores(const TensorView& tensor, const TensorView& like) {
    check_shape(tensor, {like.sizes[0], like.sizes[1], like.sizes[2], like.sizes[3]});
    check_dtype(tensor, {like.dtype});
    check_contiguous(tensor);
}

void check_first(const TensorView& tensor, const SoftmaxRange& range) {
    check_shape(tensor, {-1, -1, -1, -1});
    check_dtype(tensor, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    MEGACORE_CHECK(range.window >= 0, "window: expected at least 0, found ", range.window);
    MEGACORE_CHECK(range.causal || range.window == 0, "window: only with causal");
}

}  // namespace

void check(const SoftmaxForward& args) {
    check_first(args.x, args.range);
    check_scores(args.x, args.x);
    check_scores(args.y, args.x);
    if (!args.mask.present()) return;
    check_shape(args.mask, {-1, -1, -1, args.x.sizes[3]});
    check_dtype(args.mask, {DType::kBool});
    for (int dim = 0; dim < 3; ++dim) {
        MEGACORE_CHECK(args.mask.sizes[dim] == 1 || args.mask.sizes[dim] == args.x.sizes[dim],
                       "expected the shape of ",
                       describe(args.x),
                       " or ones, found ",
                       describe(args.mask));
    }
    MEGACORE_CHECK(args.mask.sizes[3] <= 1 || args.mask.strides[3] == 1,
                   "mask: expected a last axis without gaps, found stride ",
                   args.mask.strides[3]);
}

void check(const SoftmaxBackward& args) {
    check_first(args.y, args.range);
    check_scores(args.y, args.y);
    check_scores(args.dy, args.y);
    check_scores(args.dx, args.y);
}

namespace cpu {

MEGACORE_ISA_TABLE(SoftmaxKernels, softmax_kernels)

void softmax_forward(const SoftmaxForward& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_softmax_kernels().forward(args);
}

void softmax_backward(const SoftmaxBackward& args) {
    check(args);
    if (args.y.numel() == 0) return;
    active_softmax_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
