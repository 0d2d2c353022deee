/// A tensor that somebody else owns: pointer, element type, shape and strides.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/dtype.h"

namespace megacore {

inline constexpr int kMaxRank = 6;

/// Non-owning view. A view without data stands for an absent optional tensor.
struct TensorView {
    const char* name = "";  ///< As users see it in messages.
    void* data = nullptr;
    DType dtype = DType::kFloat32;
    int rank = 0;
    std::array<std::int64_t, kMaxRank> sizes{};
    std::array<std::int64_t, kMaxRank> strides{};  ///< In elements.

    bool present() const { return data != nullptr || rank > 0; }

    std::int64_t numel() const {
        std::int64_t count = 1;
        for (int dim = 0; dim < rank; ++dim) count *= sizes[dim];
        return count;
    }

    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

/// A contiguous view, row-major.
TensorView contiguous_view(const char* name,
                           void* data,
                           DType dtype,
                           std::initializer_list<std::int64_t> sizes);

/// "weight: float32 [128]", for messages.
std::string describe(const TensorView& tensor);

/// Throws unless `tensor` has exactly these sizes (-1 accepts any), naming tensor and both shapes.
void check_shape(const TensorView& tensor, std::initializer_list<std::int64_t> expected);

/// Throws unless elements lie in row-major order without gaps. Dimensions of size 1 are free.
void check_contiguous(const TensorView& tensor);

/// Throws unless the element type is one of `allowed`.
void check_dtype(const TensorView& tensor, std::initializer_list<DType> allowed);

}  // namespace megacore
