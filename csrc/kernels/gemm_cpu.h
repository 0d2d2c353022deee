/// Between gemm.cpp, its back ends and the versions of gemm_cpu.cpp.
#pragma once

#include "kernels/gemm.h"

namespace megacore::cpu {

/// c = a b, or c += a b, of row-major matrices; `lda` and so on are elements between rows as they
/// lie in memory.
struct Product {
    DType dtype;  ///< Of a and b; c is float32.
    std::int64_t m, n, k;
    const void* a;
    std::int64_t lda;
    bool a_transposed;
    const void* b;
    std::int64_t ldb;
    bool b_transposed;
    float* c;
    std::int64_t ldc;
    bool accumulate;
};

/// What turns a block of products in float32 into a block of the output.
struct Finish {
    const float* products;
    std::int64_t products_stride;
    void* out;
    std::int64_t out_stride;
    DType out_dtype;
    const void* bias;      ///< Of the block's first column, or null.
    const void* residual;  ///< Of the block's first element, or null.
    std::int64_t residual_stride;
    DType dtype;  ///< Of bias and residual.
    bool gelu;
    std::int64_t rows, columns;
};

/// One version of the CPU kernel.
struct GemmKernels {
    void (*finish)(const Finish& args);
};

/// A library that multiplies matrices.
struct GemmLibrary {
    const char* name;
    /// Whether it is here and can do it faster than PyTorch on this CPU.
    bool (*takes)(DType dtype);
    void (*multiply)(const Product& product);
};

extern const GemmLibrary mkl_library;

}  // namespace megacore::cpu
