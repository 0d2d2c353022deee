/// torch.ops.megacore.dropout_add.
#pragma once

#include "bindings/op_views.h"
#include "kernels/dropout_add.h"

namespace megacore::bindings {

/// A contiguous tensor as one row of elements.
inline TensorView elements(const char* name, const Tensor& tensor) {
    MEGACORE_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
    return contiguous_view(
        name, tensor.data_ptr(), to_dtype(name, tensor.scalar_type()), {tensor.numel()});
}

/// residual + dropout(x), or the dropout alone.
template <class Backend>
Tensor dropout_add(const Tensor& x,
                   const std::optional<Tensor>& residual,
                   double drop,
                   std::int64_t seed) {
    const NvtxRange range("megacore::dropout_add");
    const Backend backend(x);
    Tensor out = torch::stable::empty_like(x);
    DropoutAdd args{.out = elements("out", out), .x = elements("x", x)};
    if (residual.has_value()) args.residual = elements("residual", *residual);
    args.drop = drop;
    args.seed = static_cast<std::uint64_t>(seed);
    backend.dropout_add(args);
    return out;
}

}  // namespace megacore::bindings
