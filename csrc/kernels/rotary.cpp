// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/rotary.h"

#include "core/check.h"
#include "kernels/isa_table.h"
#include "kernels/rotary_cpu.h"

namespace megacore {
namespace {

void check_angles(const TensorView& tensor, const Rotary& args) {
    const std::int64_t num_tokens = args.q.sizes[0];
    check_shape(tensor, {-1, -1});
    check_dtype(tensor, {DType::kFloat32});
    check_contiguous(tensor);
    const std::int64_t rows = tensor.sizes[0];
    MEGACORE_CHECK(num_tokens == 0 || (rows > 0 && num_tokens % rows == 0),
                   "expected a number of rows that divides the ",
                   num_tokens,
                   " tokens, found ",
                   describe(tensor));
    MEGACORE_CHECK(2 * tensor.sizes[1] <= args.q.sizes[3] && 2 * tensor.sizes[1] <= kMaxRotaryDim,
                   "expected angles for at most the ",
                   args.q.sizes[3],
                   " lanes of a head and for at most ",
                   kMaxRotaryDim,
                   ", found ",
                   describe(tensor));
}

}  // namespace

void check(const Rotary& args) {
    check_shape(args.q, {-1, -1, -1, -1});
    check_dtype(args.q, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_contiguous(args.q);
    MEGACORE_CHECK(args.k.present() == args.v.present(),
                   "expected both k and v or none, found ",
                   describe(args.k),
                   " and ",
                   describe(args.v));
    const auto& sizes = args.q.sizes;
    const std::int64_t per_group = sizes[2] + (args.k.present() ? 2 : 0);
    check_shape(args.packed, {sizes[0], sizes[1], per_group, sizes[3]});
    check_dtype(args.packed, {args.q.dtype});
    check_contiguous(args.packed);
    for (const TensorView* tensor : {&args.k, &args.v}) {
        if (!tensor->present()) continue;
        check_shape(*tensor, {sizes[0], sizes[1], sizes[3]});
        check_dtype(*tensor, {args.q.dtype});
        check_contiguous(*tensor);
    }
    check_angles(args.cos, args);
    check_angles(args.sin, args);
    check_shape(args.sin, {args.cos.sizes[0], args.cos.sizes[1]});
}

namespace cpu {

MEGACORE_ISA_TABLE(RotaryKernels, rotary_kernels)

void rotary(const Rotary& args) {
    check(args);
    if (args.packed.numel() == 0) return;
    active_rotary_kernels().rotary(args);
}

}  // namespace cpu
}  // namespace megacore
