/// From torch's stable tensors to the kernels' views.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "core/check.h"
#include "core/nvtx.h"
#include "core/tensor_view.h"

namespace megacore::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType to_dtype(const char* name, ScalarType type) {
    switch (type) {
        case ScalarType::Float:
            return DType::kFloat32;
        case ScalarType::BFloat16:
            return DType::kBFloat16;
        case ScalarType::Half:
            return DType::kFloat16;
        case ScalarType::Double:
            return DType::kFloat64;
        case ScalarType::Int:
            return DType::kInt32;
        case ScalarType::Long:
            return DType::kInt64;
        case ScalarType::Bool:
            return DType::kBool;
        case ScalarType::Float8_e4m3fn:
            return DType::kFloat8E4M3;
        case ScalarType::Float8_e5m2:
            return DType::kFloat8E5M2;
        default:
            throw Error(detail::concatenate(name,
                                            ": element type number ",
                                            static_cast<int>(type),
                                            " is not supported by megacore's kernels"));
    }
}

/// The tensor as it is.
inline TensorView view(const char* name, const Tensor& tensor) {
    TensorView result{.name = name, .data = tensor.data_ptr()};
    result.dtype = to_dtype(name, tensor.scalar_type());
    MEGACORE_CHECK(tensor.dim() <= kMaxRank,
                   name,
                   ": at most ",
                   kMaxRank,
                   " dimensions, found ",
                   tensor.dim());
    result.rank = static_cast<int>(tensor.dim());
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    for (int dim = 0; dim < result.rank; ++dim) {
        result.sizes[dim] = sizes[dim];
        result.strides[dim] = strides[dim];
    }
    return result;
}

/// An absent tensor gives an absent view.
inline TensorView view(const char* name, const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? view(name, *tensor) : TensorView{.name = name};
}

/// A contiguous tensor [..., H] as rows [M, H].
inline TensorView rows(const char* name, const Tensor& tensor) {
    MEGACORE_CHECK(tensor.dim() >= 1, name, ": expected at least one dimension, found a scalar");
    MEGACORE_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
    const std::int64_t hidden = tensor.size(tensor.dim() - 1);
    const std::int64_t count = hidden == 0 ? 0 : tensor.numel() / hidden;
    return contiguous_view(
        name, tensor.data_ptr(), to_dtype(name, tensor.scalar_type()), {count, hidden});
}

}  // namespace megacore::bindings
