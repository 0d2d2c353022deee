/// From run-time element types to template arguments, without macros.
#pragma once

#include "core/dtype.h"

namespace megacore {

/// Calls body(TypeTag<T>) for float32, bfloat16 or float16. Checks are the caller's.
template <class Body>
void visit_float_dtype(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::kBFloat16:
            return body(TypeTag<BFloat16>{});
        case DType::kFloat16:
            return body(TypeTag<Float16>{});
        default:
            return body(TypeTag<float>{});
    }
}

/// Calls body(TypeTag<X>, TypeTag<W>) for the pairs of data and parameter types that a norm takes.
template <class Body>
void visit_norm_dtypes(DType x, DType weight, const Body& body) {
    visit_float_dtype(x, [&](auto x_tag) {
        using X = typename decltype(x_tag)::type;
        if (weight == kDTypeOf<X>) return body(x_tag, x_tag);
        if constexpr (kDTypeOf<X> == DType::kFloat32) {
            if (weight == DType::kBFloat16) return body(x_tag, TypeTag<BFloat16>{});
            return body(x_tag, TypeTag<Float16>{});
        } else {
            return body(x_tag, TypeTag<float>{});
        }
    });
}

}  // namespace megacore
