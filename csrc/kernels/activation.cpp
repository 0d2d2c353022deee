// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/activation.h"

#include <cstring>

#include "core/check.h"
#include "kernels/activation_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {
namespace {

void check_input(const TensorView& x, const TensorView& bias, Activation activation, bool gated) {
    check_shape(x, {-1, -1});
    check_dtype(x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_contiguous(x);
    MEGACORE_CHECK(!gated || x.sizes[1] % 2 == 0,
                   "x: expected an even number of columns for a gate, found ",
                   describe(x));
    MEGACORE_CHECK(static_cast<int>(activation) < kNumActivations,
                   "activation: expected a number below ",
                   kNumActivations,
                   ", found ",
                   static_cast<int>(activation));
    if (!bias.present()) return;
    check_shape(bias, {x.sizes[1]});
    check_dtype(bias, {x.dtype});
    check_contiguous(bias);
}

void check_output(const TensorView& tensor, const TensorView& x, std::int64_t columns) {
    check_shape(tensor, {x.sizes[0], columns});
    check_dtype(tensor, {x.dtype});
    check_contiguous(tensor);
}

}  // namespace

void check(const ActivationForward& args) {
    check_input(args.x, args.bias, args.activation, args.gated);
    check_output(args.out, args.x, args.x.sizes[1] / (args.gated ? 2 : 1));
}

void check(const ActivationBackward& args) {
    check_input(args.x, args.bias, args.activation, args.gated);
    check_output(args.dout, args.x, args.x.sizes[1] / (args.gated ? 2 : 1));
    check_output(args.dx, args.x, args.x.sizes[1]);
    MEGACORE_CHECK(args.dbias.present() == args.bias.present(),
                   "dbias: expected exactly with a bias, found ",
                   describe(args.dbias),
                   " and ",
                   describe(args.bias));
    if (!args.bias.present()) return;
    check_shape(args.dbias, {args.x.sizes[1]});
    check_dtype(args.dbias, {args.x.dtype});
    check_contiguous(args.dbias);
    check_dtype(args.workspace, {DType::kFloat32});
}

namespace cpu {

MEGACORE_ISA_TABLE(ActivationKernels, activation_kernels)

void activation_forward(const ActivationForward& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_activation_kernels().forward(args);
}

std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width) {
    return activation_chunks(num_rows).count * width;
}

void activation_backward(const ActivationBackward& args) {
    check(args);
    const std::int64_t rows = args.x.sizes[0];
    const std::int64_t width = args.x.sizes[1];
    if (args.bias.present()) {
        check_shape(args.workspace, {activation_backward_workspace(rows, width)});
    }
    if (width == 0) return;
    active_activation_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
