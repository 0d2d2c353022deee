/// torch.ops.megacore.cross_entropy_*.
#pragma once

#include "bindings/op_views.h"
#include "kernels/cross_entropy.h"

namespace megacore::bindings {

/// largest, total, chosen, sum (no elements unless with_sum), each [M] float32.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_sums(const Tensor& logits,
                                                              const Tensor& labels,
                                                              std::int64_t first_column,
                                                              bool with_sum) {
    const NvtxRange range("megacore::cross_entropy_sums");
    const Backend backend(logits);
    MEGACORE_CHECK(logits.dim() == 2, "logits: expected [M, V], found ", logits.dim(), " axes");
    const std::int64_t num_rows = logits.size(0);
    const auto vector = [&](std::int64_t size) {
        return torch::stable::new_empty(logits, {size}, ScalarType::Float);
    };
    Tensor largest = vector(num_rows), total = vector(num_rows), chosen = vector(num_rows);
    Tensor sum = vector(with_sum ? num_rows : 0);
    CrossEntropyForward args{.largest = view("largest", largest),
                             .total = view("total", total),
                             .chosen = view("chosen", chosen),
                             .logits = view("logits", logits),
                             .labels = view("labels", labels),
                             .first_column = first_column};
    if (with_sum) args.sum = view("sum", sum);
    backend.cross_entropy_forward(args);
    return {std::move(largest), std::move(total), std::move(chosen), std::move(sum)};
}

/// Writes the gradient over the logits.
template <class Backend>
void cross_entropy_gradient_(const Tensor& logits,
                             const Tensor& labels,
                             const Tensor& largest,
                             const Tensor& factor,
                             const Tensor& at_label,
                             const std::optional<Tensor>& uniform,
                             std::int64_t first_column) {
    const NvtxRange range("megacore::cross_entropy_gradient_");
    const Backend backend(logits);
    backend.cross_entropy_backward({.dlogits = view("logits", logits),
                                    .logits = view("logits", logits),
                                    .labels = view("labels", labels),
                                    .largest = view("largest", largest),
                                    .factor = view("factor", factor),
                                    .at_label = view("at_label", at_label),
                                    .uniform = view("uniform", uniform),
                                    .first_column = first_column});
}

}  // namespace megacore::bindings
