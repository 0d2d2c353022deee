/// torch.ops.megacore.rotary_*.
#pragma once

#include "bindings/op_views.h"
#include "kernels/rotary.h"

namespace megacore::bindings {

/// A contiguous tensor [B, S, ...] as [B * S, ...].
inline TensorView tokens(const char* name, const Tensor& tensor) {
    MEGACORE_CHECK(
        tensor.dim() >= 3, name, ": expected [B, S, ...], found ", tensor.dim(), " axes");
    MEGACORE_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
    TensorView result = view(name, tensor);
    for (int dim = 1; dim < result.rank; ++dim) {
        result.sizes[dim - 1] = (dim == 1 ? result.sizes[0] : 1) * result.sizes[dim];
        result.strides[dim - 1] = result.strides[dim];
    }
    --result.rank;
    return result;
}

/// Heads [B, S, N, D] as one group, [B * S, 1, N, D].
inline TensorView one_group(const char* name, const Tensor& tensor) {
    TensorView heads = tokens(name, tensor);
    MEGACORE_CHECK(heads.rank == 3, name, ": expected [B, S, N, D], found ", tensor.dim(), " axes");
    const auto& sizes = heads.sizes;
    return contiguous_view(name, heads.data, heads.dtype, {sizes[0], 1, sizes[1], sizes[2]});
}

/// x [B, S, N, D] turned by angles [P, dim / 2], or by the opposite ones.
template <class Backend>
Tensor rotary_turn(
    const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool opposite) {
    const NvtxRange range("megacore::rotary_turn");
    const Backend backend(x);
    Tensor out = torch::stable::empty_like(x);
    // Backward goes from the split to the packed form.
    const TensorView source = one_group("x", x);
    const TensorView target = one_group("out", out);
    backend.rotary({.packed = opposite ? target : source,
                    .q = opposite ? source : target,
                    .cos = view("cos", cos),
                    .sin = view("sin", sin),
                    .interleaved = interleaved,
                    .backward = opposite});
    return out;
}

/// q [B, S, G, R, D], k and v [B, S, G, D] of qkv [B, S, G, R + 2, D].
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> rotary_split(const Tensor& qkv,
                                                const Tensor& cos,
                                                const Tensor& sin,
                                                bool interleaved) {
    const NvtxRange range("megacore::rotary_split");
    const Backend backend(qkv);
    MEGACORE_CHECK(qkv.dim() == 5 && qkv.size(3) >= 2,
                   "qkv: expected [B, S, G, R + 2, D], found ",
                   describe(view("qkv", qkv)));
    const std::int64_t B = qkv.size(0), S = qkv.size(1), G = qkv.size(2), D = qkv.size(4);
    Tensor q = torch::stable::new_empty(qkv, {B, S, G, qkv.size(3) - 2, D});
    Tensor k = torch::stable::new_empty(qkv, {B, S, G, D});
    Tensor v = torch::stable::new_empty(qkv, {B, S, G, D});
    backend.rotary({.packed = tokens("qkv", qkv),
                    .q = tokens("q", q),
                    .k = tokens("k", k),
                    .v = tokens("v", v),
                    .cos = view("cos", cos),
                    .sin = view("sin", sin),
                    .interleaved = interleaved});
    return {std::move(q), std::move(k), std::move(v)};
}

/// The gradient of qkv from those of q, k and v.
template <class Backend>
Tensor rotary_join(const Tensor& q,
                   const Tensor& k,
                   const Tensor& v,
                   const Tensor& cos,
                   const Tensor& sin,
                   bool interleaved) {
    const NvtxRange range("megacore::rotary_join");
    const Backend backend(q);
    MEGACORE_CHECK(q.dim() == 5, "q: expected [B, S, G, R, D], found ", describe(view("q", q)));
    Tensor qkv =
        torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3) + 2, q.size(4)});
    backend.rotary({.packed = tokens("qkv", qkv),
                    .q = tokens("q", q),
                    .k = tokens("k", k),
                    .v = tokens("v", v),
                    .cos = view("cos", cos),
                    .sin = view("sin", sin),
                    .interleaved = interleaved,
                    .backward = true});
    return qkv;
}

}  // namespace megacore::bindings
