// Back end of gemm.h: the products of MKL that PyTorch's wheels for x86 contain and export.
//
// They run on PyTorch's threads, take bfloat16 and float16 and add into float32. Declared weak,
// they are null where nothing provides them: another processor, a PyTorch with another BLAS, or a
// program without PyTorch, as the C++ tests are.
#include <algorithm>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cpu_features.h"
#include "kernels/gemm_cpu.h"

extern "C" {

#define MEGACORE_MKL_GEMM(name, type)                    \
    __attribute__((weak)) void name(const char* trans_a, \
                                    const char* trans_b, \
                                    const int* m,        \
                                    const int* n,        \
                                    const int* k,        \
                                    const float* alpha,  \
                                    const type* a,       \
                                    const int* lda,      \
                                    const type* b,       \
                                    const int* ldb,      \
                                    const float* beta,   \
                                    float* c,            \
                                    const int* ldc)
MEGACORE_MKL_GEMM(sgemm_, float);
MEGACORE_MKL_GEMM(gemm_bf16bf16f32_, std::uint16_t);
MEGACORE_MKL_GEMM(gemm_f16f16f32_, std::uint16_t);
#undef MEGACORE_MKL_GEMM
}

namespace megacore::cpu {
namespace {

bool has_feature(const char* name) {
    const std::vector<std::string> features = cpu_features();
    return std::find(features.begin(), features.end(), name) != features.end();
}

// PyTorch itself multiplies 16-bit matrices with a plain loop where its oneDNN cannot, which needs
// AVX-512 for bfloat16 and its 16-bit arithmetic for float16. There MKL, which converts blocks to
// float32, is 5 to 90 times as fast; elsewhere it has not been compared.
bool takes(DType dtype) {
    static const bool bf16_in_torch = has_feature("avx512f");
    static const bool fp16_in_torch = has_feature("avx512_fp16");
    switch (dtype) {
        case DType::kFloat32:
            return sgemm_ != nullptr;
        case DType::kBFloat16:
            return gemm_bf16bf16f32_ != nullptr && !bf16_in_torch;
        case DType::kFloat16:
            return gemm_f16f16f32_ != nullptr && !fp16_in_torch;
        default:
            return false;
    }
}

int narrow(std::int64_t size) {
    MEGACORE_CHECK(size <= INT32_MAX, "a, b: sizes must be below 2^31, found ", size);
    return static_cast<int>(size);
}

void multiply(const Product& product) {
    // MKL's matrices are column-major: it sees transposes, and c^T = b^T a^T.
    const char* trans_first = product.b_transposed ? "T" : "N";
    const char* trans_second = product.a_transposed ? "T" : "N";
    const int m = narrow(product.n);
    const int n = narrow(product.m);
    const int k = narrow(product.k);
    const int lda = narrow(product.ldb);
    const int ldb = narrow(product.lda);
    const int ldc = narrow(product.ldc);
    const float alpha = 1.0f;
    const float beta = product.accumulate ? 1.0f : 0.0f;
    const auto call = [&](auto function, auto tag) {
        using Element = typename decltype(tag)::type;
        function(trans_first,
                 trans_second,
                 &m,
                 &n,
                 &k,
                 &alpha,
                 static_cast<const Element*>(product.b),
                 &lda,
                 static_cast<const Element*>(product.a),
                 &ldb,
                 &beta,
                 product.c,
                 &ldc);
    };
    switch (product.dtype) {
        case DType::kBFloat16:
            return call(gemm_bf16bf16f32_, TypeTag<std::uint16_t>{});
        case DType::kFloat16:
            return call(gemm_f16f16f32_, TypeTag<std::uint16_t>{});
        default:
            return call(sgemm_, TypeTag<float>{});
    }
}

}  // namespace

const GemmLibrary mkl_library{"mkl", takes, multiply};

}  // namespace megacore::cpu
