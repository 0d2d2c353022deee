// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/embedding.h"

#include "kernels/embedding_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {

void check(const EmbeddingBackward& args) {
    check_shape(args.dtable, {-1, -1});
    check_shape(args.dout, {-1, args.dtable.sizes[1]});
    check_dtype(args.dout, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_dtype(args.dtable, {args.accumulate ? DType::kFloat32 : args.dout.dtype});
    check_contiguous(args.dtable);
    check_contiguous(args.dout);
    for (const TensorView* tensor : {&args.sorted, &args.order}) {
        check_shape(*tensor, {args.dout.sizes[0]});
        check_dtype(*tensor, {DType::kInt64});
        check_contiguous(*tensor);
    }
}

namespace cpu {

MEGACORE_ISA_TABLE(EmbeddingKernels, embedding_kernels)

void embedding_backward(const EmbeddingBackward& args) {
    check(args);
    if (args.dtable.numel() == 0) return;
    active_embedding_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
