// torch.ops.megacore.gemm and gemm_add_ on the CPU. Elsewhere PyTorch's own products run.
#include "bindings/op_views.h"
#include "kernels/gemm.h"

namespace megacore::bindings {
namespace {

/// Whether a library multiplies matrices of x's dtype better than PyTorch does.
bool gemm_is_native(const Tensor& x) {
    return *cpu::gemm_backend(to_dtype("x", x.scalar_type())) != '\0';
}

/// gelu(a b + bias) + residual in the dtype of a, or in float32 with `wide`.
Tensor gemm(const Tensor& a,
            const Tensor& b,
            const std::optional<Tensor>& bias,
            const std::optional<Tensor>& residual,
            bool gelu,
            bool wide) {
    const NvtxRange range("megacore::gemm");
    Gemm args{.a = view("a", a), .b = view("b", b), .bias = view("bias", bias)};
    args.residual = view("residual", residual);
    args.gelu = gelu;
    const int rank = args.a.rank;
    MEGACORE_CHECK(args.b.rank == rank && (rank == 2 || rank == 3),
                   "a, b: expected two matrices or two batches of matrices, found ",
                   describe(args.a),
                   " and ",
                   describe(args.b));
    const std::int64_t m = args.a.sizes[rank - 2];
    const std::int64_t n = args.b.sizes[rank - 1];
    const auto type = wide ? ScalarType::Float : a.scalar_type();
    Tensor out = rank == 2 ? torch::stable::new_empty(a, {m, n}, type)
                           : torch::stable::new_empty(a, {args.a.sizes[0], m, n}, type);
    args.out = view("out", out);
    const std::int64_t size = cpu::gemm_workspace(m, n, args.out.dtype);
    Tensor workspace = torch::stable::new_empty(a, {size}, ScalarType::Float);
    args.workspace = view("workspace", workspace);
    cpu::gemm(args);
    return out;
}

/// total += a b, in float32.
void gemm_add_(const Tensor& total, const Tensor& a, const Tensor& b) {
    const NvtxRange range("megacore::gemm_add_");
    Gemm args{.out = view("total", total), .a = view("a", a), .b = view("b", b)};
    args.accumulate = true;
    cpu::gemm(args);
}

}  // namespace
}  // namespace megacore::bindings

STABLE_TORCH_LIBRARY_IMPL(megacore, CPU, library) {
    library.impl("gemm", TORCH_BOX(&megacore::bindings::gemm));
    library.impl("gemm_add_", TORCH_BOX(&megacore::bindings::gemm_add_));
    library.impl("gemm_is_native", TORCH_BOX(&megacore::bindings::gemm_is_native));
}
