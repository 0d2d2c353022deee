/// torch.ops.megacore.attention_*.
#pragma once

#include "bindings/op_views.h"
#include "kernels/attention.h"

namespace megacore::bindings {

inline AttentionRule attention_rule(const std::optional<Tensor>& documents,
                                    const std::optional<Tensor>& key_lengths,
                                    bool causal,
                                    std::int64_t window,
                                    double scale,
                                    double drop,
                                    std::int64_t seed) {
    return {.documents = view("documents", documents),
            .key_lengths = view("key_lengths", key_lengths),
            .causal = causal,
            .window = window,
            .scale = scale,
            .drop = drop,
            .seed = static_cast<std::uint64_t>(seed)};
}

/// A new contiguous tensor of the same shape and dtype.
inline Tensor contiguous_like(const Tensor& tensor) {
    return torch::stable::new_empty(tensor, tensor.sizes());
}

/// out [B, Sq, G, R, D] and log_sum [B, Sq, G, R] float32 of q [B, Sq, G, R, D], k and v
/// [B, Sk, G, D].
template <class Backend>
std::tuple<Tensor, Tensor> attention_forward(const Tensor& q,
                                             const Tensor& k,
                                             const Tensor& v,
                                             const std::optional<Tensor>& documents,
                                             const std::optional<Tensor>& key_lengths,
                                             bool causal,
                                             std::int64_t window,
                                             double scale,
                                             double drop,
                                             std::int64_t seed) {
    const NvtxRange range("megacore::attention_forward");
    const Backend backend(q);
    MEGACORE_CHECK(q.dim() == 5, "q: expected [B, S, G, R, D], found ", describe(view("q", q)));
    Tensor out = contiguous_like(q);
    Tensor log_sum = torch::stable::new_empty(
        q, {q.size(0), q.size(1), q.size(2), q.size(3)}, ScalarType::Float);
    AttentionForward args{
        .out = view("out", out),
        .log_sum = view("log_sum", log_sum),
        .q = view("q", q),
        .k = view("k", k),
        .v = view("v", v),
        .rule = attention_rule(documents, key_lengths, causal, window, scale, drop, seed)};
    check(args);
    const std::int64_t floats = Backend::attention_forward_workspace(args);
    Tensor workspace = torch::stable::new_empty(q, {floats}, ScalarType::Float);
    args.workspace = view("workspace", workspace);
    backend.attention_forward(args);
    return {std::move(out), std::move(log_sum)};
}

/// dq, dk, dv.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& dout,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum,
                                                      const std::optional<Tensor>& documents,
                                                      const std::optional<Tensor>& key_lengths,
                                                      bool causal,
                                                      std::int64_t window,
                                                      double scale,
                                                      double drop,
                                                      std::int64_t seed) {
    const NvtxRange range("megacore::attention_backward");
    const Backend backend(q);
    Tensor dq = contiguous_like(q);
    Tensor dk = contiguous_like(k);
    Tensor dv = contiguous_like(v);
    AttentionBackward args{
        .dq = view("dq", dq),
        .dk = view("dk", dk),
        .dv = view("dv", dv),
        .dout = view("dout", dout),
        .q = view("q", q),
        .k = view("k", k),
        .v = view("v", v),
        .out = view("out", out),
        .log_sum = view("log_sum", log_sum),
        .rule = attention_rule(documents, key_lengths, causal, window, scale, drop, seed)};
    check(args);
    const std::int64_t floats = Backend::attention_backward_workspace(args);
    Tensor workspace = torch::stable::new_empty(q, {floats}, ScalarType::Float);
    args.workspace = view("workspace", workspace);
    backend.attention_backward(args);
    return {std::move(dq), std::move(dk), std::move(dv)};
}

}  // namespace megacore::bindings
