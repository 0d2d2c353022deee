// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/fp8_quantize.h"

#include "core/check.h"
#include "core/math.h"
#include "kernels/fp8_quantize_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {
namespace {

void check_matrices(const TensorView& x, const TensorView& out) {
    check_shape(x, {-1, -1});
    check_dtype(x, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_contiguous(x);
    check_shape(out, {x.sizes[0], x.sizes[1]});
    check_dtype(out, {DType::kFloat8E4M3, DType::kFloat8E5M2});
    check_contiguous(out);
}

}  // namespace

void check(const Fp8Quantize& args) {
    check_matrices(args.x, args.out);
    if (args.out_t.present()) {
        check_shape(args.out_t, {args.x.sizes[1], args.x.sizes[0]});
        check_dtype(args.out_t, {args.out.dtype});
        check_contiguous(args.out_t);
    }
    for (const TensorView* tensor : {&args.amax, &args.scale}) {
        check_shape(*tensor, {1});
        check_dtype(*tensor, {DType::kFloat32});
    }
}

void check(const Fp8QuantizeBlocks& args) {
    check_matrices(args.x, args.out);
    MEGACORE_CHECK((args.rows == 1 || args.rows == 128) && args.columns == 128,
                   "blocks: expected 1 x 128 or 128 x 128, found ",
                   args.rows,
                   " x ",
                   args.columns);
    check_shape(args.inverse,
                {ceil_div(args.x.sizes[0], args.rows), ceil_div(args.x.sizes[1], args.columns)});
    check_dtype(args.inverse, {DType::kFloat32});
    check_contiguous(args.inverse);
}

namespace cpu {

MEGACORE_ISA_TABLE(Fp8QuantizeKernels, fp8_quantize_kernels)

void fp8_quantize(const Fp8Quantize& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_fp8_quantize_kernels().tensor(args);
}

void fp8_quantize_blocks(const Fp8QuantizeBlocks& args) {
    check(args);
    if (args.x.numel() == 0) return;
    active_fp8_quantize_kernels().blocks(args);
}

}  // namespace cpu
}  // namespace megacore
