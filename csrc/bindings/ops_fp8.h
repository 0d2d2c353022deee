/// torch.ops.megacore.fp8_quantize and fp8_quantize_blocks.
#pragma once

#include "bindings/op_views.h"
#include "core/math.h"
#include "kernels/fp8_quantize.h"

namespace megacore::bindings {

inline ScalarType fp8_type(bool e5m2) {
    return e5m2 ? ScalarType::Float8_e5m2 : ScalarType::Float8_e4m3fn;
}

/// out [M, K], out_t [K, M] (no elements unless asked for); amax is raised.
template <class Backend>
std::tuple<Tensor, Tensor> fp8_quantize(
    const Tensor& x, const Tensor& scale, const Tensor& amax, bool e5m2, bool transpose) {
    const NvtxRange range("megacore::fp8_quantize");
    const Backend backend(x);
    Fp8Quantize args{.x = view("x", x)};
    MEGACORE_CHECK(args.x.rank == 2, "x: expected [M, K], found ", describe(args.x));
    const std::int64_t rows = args.x.sizes[0], columns = args.x.sizes[1];
    Tensor out = torch::stable::new_empty(x, {rows, columns}, fp8_type(e5m2));
    Tensor out_t = torch::stable::new_empty(
        x, {transpose ? columns : 0, transpose ? rows : 0}, fp8_type(e5m2));
    args.out = view("out", out);
    if (transpose) args.out_t = view("out_t", out_t);
    args.amax = view("amax", amax);
    args.scale = view("scale", scale);
    backend.fp8_quantize(args);
    return {std::move(out), std::move(out_t)};
}

/// out [M, K] and the inverse of the scale of every block.
template <class Backend>
std::tuple<Tensor, Tensor> fp8_quantize_blocks(const Tensor& x,
                                               std::int64_t rows,
                                               std::int64_t columns,
                                               bool e5m2) {
    const NvtxRange range("megacore::fp8_quantize_blocks");
    const Backend backend(x);
    Fp8QuantizeBlocks args{.x = view("x", x), .rows = rows, .columns = columns};
    MEGACORE_CHECK(args.x.rank == 2, "x: expected [M, K], found ", describe(args.x));
    MEGACORE_CHECK(rows > 0 && columns > 0, "blocks: expected sizes of at least 1");
    Tensor out = torch::stable::new_empty(x, {args.x.sizes[0], args.x.sizes[1]}, fp8_type(e5m2));
    Tensor inverse = torch::stable::new_empty(
        x,
        {ceil_div(args.x.sizes[0], rows), ceil_div(args.x.sizes[1], columns)},
        ScalarType::Float);
    args.out = view("out", out);
    args.inverse = view("inverse", inverse);
    backend.fp8_quantize_blocks(args);
    return {std::move(out), std::move(inverse)};
}

}  // namespace megacore::bindings
