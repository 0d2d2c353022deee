#include "core/tensor_view.h"

#include <algorithm>
#include <sstream>

#include "core/check.h"

namespace megacore {

TensorView contiguous_view(const char* name,
                           void* data,
                           DType dtype,
                           std::initializer_list<std::int64_t> sizes) {
    MEGACORE_CHECK(sizes.size() <= kMaxRank,
                   name,
                   ": at most ",
                   kMaxRank,
                   " dimensions, found ",
                   sizes.size());
    TensorView view{.name = name, .data = data, .dtype = dtype};
    view.rank = static_cast<int>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), view.sizes.begin());
    std::int64_t stride = 1;
    for (int dim = view.rank - 1; dim >= 0; --dim) {
        view.strides[dim] = stride;
        stride *= view.sizes[dim];
    }
    return view;
}

std::string describe(const TensorView& tensor) {
    std::ostringstream text;
    text << tensor.name << ": " << name_of(tensor.dtype) << " [";
    for (int dim = 0; dim < tensor.rank; ++dim) text << (dim ? ", " : "") << tensor.sizes[dim];
    text << "]";
    return std::move(text).str();
}

void check_shape(const TensorView& tensor, std::initializer_list<std::int64_t> expected) {
    bool equal = tensor.rank == static_cast<int>(expected.size());
    int dim = 0;
    std::ostringstream wanted;
    for (const std::int64_t size : expected) {
        equal = equal && (size < 0 || tensor.sizes[dim] == size);
        wanted << (dim ? ", " : "");
        size < 0 ? wanted << "any" : wanted << size;
        ++dim;
    }
    MEGACORE_CHECK(equal, "expected shape [", wanted.str(), "], found ", describe(tensor));
}

void check_contiguous(const TensorView& tensor) {
    std::int64_t expected = 1;
    for (int dim = tensor.rank - 1; dim >= 0; --dim) {
        const bool fits = tensor.sizes[dim] <= 1 || tensor.strides[dim] == expected;
        MEGACORE_CHECK(fits || tensor.numel() == 0,
                       "expected contiguous elements, found ",
                       describe(tensor),
                       " with stride ",
                       tensor.strides[dim],
                       " in dimension ",
                       dim,
                       " instead of ",
                       expected);
        expected *= tensor.sizes[dim];
    }
}

void check_dtype(const TensorView& tensor, std::initializer_list<DType> allowed) {
    std::ostringstream wanted;
    for (const DType dtype : allowed) {
        if (dtype == tensor.dtype) return;
        wanted << (wanted.tellp() > 0 ? ", " : "") << name_of(dtype);
    }
    MEGACORE_CHECK(false, "expected one of ", wanted.str(), ", found ", describe(tensor));
}

}  // namespace megacore
