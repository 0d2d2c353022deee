/// torch.ops.megacore.embedding_gradient and embedding_gradient_add_.
#pragma once

#include "bindings/op_views.h"
#include "kernels/embedding.h"

namespace megacore::bindings {

/// dtable [num_rows, H] from dout [M, H] and the sorted rows of the tokens.
template <class Backend>
Tensor embedding_gradient(const Tensor& dout,
                          const Tensor& sorted,
                          const Tensor& order,
                          std::int64_t num_rows) {
    const NvtxRange range("megacore::embedding_gradient");
    const Backend backend(dout);
    MEGACORE_CHECK(dout.dim() == 2, "dout: expected [M, H], found ", dout.dim(), " axes");
    Tensor dtable = torch::stable::new_empty(dout, {num_rows, dout.size(1)});
    backend.embedding_backward({.dtable = view("dtable", dtable),
                                .dout = view("dout", dout),
                                .sorted = view("sorted", sorted),
                                .order = view("order", order)});
    return dtable;
}

/// The same, added to total [V, H] float32.
template <class Backend>
void embedding_gradient_add_(const Tensor& total,
                             const Tensor& dout,
                             const Tensor& sorted,
                             const Tensor& order) {
    const NvtxRange range("megacore::embedding_gradient_add_");
    const Backend backend(dout);
    backend.embedding_backward({.dtable = view("total", total),
                                .dout = view("dout", dout),
                                .sorted = view("sorted", sorted),
                                .order = view("order", order),
                                .accumulate = true});
}

}  // namespace megacore::bindings
