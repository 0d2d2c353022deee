// Checks shared by the CPU and the CUDA back ends; the choice of the CPU back end, and its blocks.
#include "kernels/gemm.h"

#include <algorithm>

#include "core/check.h"
#include "core/math.h"
#include "kernels/gemm_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {
namespace {

void check_matrix(const TensorView& tensor) {
    const int rows = tensor.rank - 2;
    const bool fits = tensor.strides[rows] == 1 || tensor.strides[rows + 1] == 1 ||
                      tensor.sizes[rows] <= 1 || tensor.sizes[rows + 1] <= 1;
    MEGACORE_CHECK(fits, tensor.name, ": expected a stride of 1 in one of the last two dimensions");
}

void check_sizes(const TensorView& tensor, const Gemm& args, std::int64_t m, std::int64_t n) {
    if (args.a.rank == 2) {
        check_shape(tensor, {m, n});
    } else {
        check_shape(tensor, {args.a.sizes[0], m, n});
    }
}

}  // namespace

void check(const Gemm& args) {
    const int rank = args.a.rank;
    MEGACORE_CHECK(rank == 2 || rank == 3,
                   "a: expected a matrix or a batch of matrices, found ",
                   rank,
                   " dimensions");
    check_dtype(args.a, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_dtype(args.b, {args.a.dtype});
    MEGACORE_CHECK(args.b.rank == rank, "b: expected ", rank, " dimensions, as a has");
    const std::int64_t m = args.a.sizes[rank - 2];
    const std::int64_t n = args.b.sizes[rank - 1];
    check_sizes(args.b, args, args.a.sizes[rank - 1], n);
    check_sizes(args.out, args, m, n);
    check_matrix(args.a);
    check_matrix(args.b);
    MEGACORE_CHECK(args.out.strides[rank - 1] == 1 || n <= 1,
                   "out: expected rows without gaps between their elements");
    if (args.accumulate) {
        check_dtype(args.out, {DType::kFloat32});
        MEGACORE_CHECK(!args.bias.present() && !args.residual.present() && !args.gelu,
                       "bias, residual, gelu: not together with accumulation");
    } else {
        check_dtype(args.out, {args.a.dtype, DType::kFloat32});
    }
    if (args.bias.present()) {
        check_shape(args.bias, {n});
        check_dtype(args.bias, {args.a.dtype});
        check_contiguous(args.bias);
    }
    if (args.residual.present()) {
        check_sizes(args.residual, args, m, n);
        check_dtype(args.residual, {args.a.dtype});
        check_contiguous(args.residual);
    }
}

namespace cpu {
namespace {

// A block of products in float32 stays in the cache until it is rounded. Smaller blocks make the
// back end rearrange the same operands more often.
constexpr std::int64_t kBlockRows = 512;
constexpr std::int64_t kBlockColumns = 1024;

const GemmLibrary* library_for(DType dtype) {
    return mkl_library.takes(dtype) ? &mkl_library : nullptr;
}

struct Operand {
    const char* data;
    std::int64_t stride;
    bool transposed;
};

/// A matrix as it lies in memory.
Operand operand(const TensorView& tensor, std::int64_t batch) {
    const int row = tensor.rank - 2;
    const std::int64_t first = tensor.rank == 3 ? batch * tensor.strides[0] : 0;
    Operand result{tensor.as<const char>() + first * size_of(tensor.dtype), 0, false};
    const std::int64_t rows = tensor.sizes[row];
    const std::int64_t columns = tensor.sizes[row + 1];
    // The stride of a dimension of size 1 says nothing.
    const bool row_major =
        columns <= 1 ? rows <= 1 || tensor.strides[row + 1] == 1 || tensor.strides[row] != 1
                     : tensor.strides[row + 1] == 1;
    result.transposed = !row_major;
    const std::int64_t inner = row_major ? columns : rows;
    const std::int64_t outer = row_major ? rows : columns;
    const std::int64_t stride = tensor.strides[row_major ? row : row + 1];
    result.stride = outer <= 1 ? std::max<std::int64_t>(1, inner) : stride;
    return result;
}

/// Where element (row, column) of an operand lies.
const void* at(const Operand& x, DType dtype, std::int64_t row, std::int64_t column) {
    const std::int64_t offset = x.transposed ? column * x.stride + row : row * x.stride + column;
    return x.data + offset * size_of(dtype);
}

}  // namespace

MEGACORE_ISA_TABLE(GemmKernels, gemm_kernels)

const char* gemm_backend(DType dtype) {
    const GemmLibrary* library = library_for(dtype);
    return library == nullptr ? "" : library->name;
}

std::int64_t gemm_workspace(std::int64_t num_rows, std::int64_t num_columns, DType out) {
    if (out == DType::kFloat32) return 0;
    return std::min(num_rows, kBlockRows) * std::min(num_columns, kBlockColumns);
}

void gemm(const Gemm& args) {
    check(args);
    const int rank = args.a.rank;
    const std::int64_t m = args.a.sizes[rank - 2];
    const std::int64_t k = args.a.sizes[rank - 1];
    const std::int64_t n = args.b.sizes[rank - 1];
    const GemmLibrary* library = library_for(args.a.dtype);
    MEGACORE_CHECK(
        library != nullptr, "a: no back end multiplies matrices of ", name_of(args.a.dtype));
    const bool in_place = args.out.dtype == DType::kFloat32;
    const bool is_plain =
        in_place && !args.bias.present() && !args.residual.present() && !args.gelu;
    const std::int64_t element = size_of(args.a.dtype);
    const std::int64_t block_rows = is_plain ? m : kBlockRows;
    const std::int64_t block_columns = is_plain ? n : kBlockColumns;
    const std::int64_t out_stride = m <= 1 ? n : args.out.strides[rank - 2];
    const std::int64_t batches = rank == 3 ? args.a.sizes[0] : 1;
    if (!in_place) check_shape(args.workspace, {gemm_workspace(m, n, args.out.dtype)});
    for (std::int64_t batch = 0; batch < batches; ++batch) {
        const Operand a = operand(args.a, batch);
        const Operand b = operand(args.b, batch);
        const std::int64_t first_out = rank == 3 ? batch * args.out.strides[0] : 0;
        for (std::int64_t row = 0; row < m; row += block_rows) {
            for (std::int64_t column = 0; column < n; column += block_columns) {
                const std::int64_t rows = std::min(block_rows, m - row);
                const std::int64_t columns = std::min(block_columns, n - column);
                char* out = args.out.as<char>() +
                            (first_out + row * out_stride + column) * size_of(args.out.dtype);
                Product product{.dtype = args.a.dtype, .m = rows, .n = columns, .k = k};
                product.a = at(a, args.a.dtype, row, 0);
                product.lda = a.stride;
                product.a_transposed = a.transposed;
                product.b = at(b, args.a.dtype, 0, column);
                product.ldb = b.stride;
                product.b_transposed = b.transposed;
                product.c = in_place ? reinterpret_cast<float*>(out) : args.workspace.as<float>();
                product.ldc = in_place ? out_stride : columns;
                product.accumulate = args.accumulate;
                if (k > 0) {
                    library->multiply(product);
                } else if (!args.accumulate) {
                    for (std::int64_t i = 0; i < rows; ++i) {
                        std::fill_n(product.c + i * product.ldc, columns, 0.0f);
                    }
                }
                if (is_plain) continue;
                const std::int64_t first_residual = (batch * m + row) * n + column;
                active_gemm_kernels().finish({
                    .products = product.c,
                    .products_stride = product.ldc,
                    .out = out,
                    .out_stride = out_stride,
                    .out_dtype = args.out.dtype,
                    .bias = args.bias.present() ? args.bias.as<const char>() + column * element
                                                : nullptr,
                    .residual = args.residual.present()
                                    ? args.residual.as<const char>() + first_residual * element
                                    : nullptr,
                    .residual_stride = n,
                    .dtype = args.a.dtype,
                    .gelu = args.gelu,
                    .rows = rows,
                    .columns = columns,
                });
            }
        }
    }
}

}  // namespace cpu
}  // namespace megacore
