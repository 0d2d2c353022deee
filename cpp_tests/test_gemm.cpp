// Matrix products. The library behind them is MKL's interface, which this program provides itself
// in the plainest way: what is tested is blocks, layouts, batches and what follows the product.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cpu_features.h"
#include "kernels/gemm.h"

namespace {

int calls = 0;

template <class T>
void plain_gemm(const char* trans_a,
                const char* trans_b,
                int m,
                int n,
                int k,
                const T* a,
                int lda,
                const T* b,
                int ldb,
                float beta,
                float* c,
                int ldc) {
    ++calls;
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            double sum = 0.0;
            for (int p = 0; p < k; ++p) {
                const T x = *trans_a == 'N' ? a[i + p * lda] : a[p + i * lda];
                const T y = *trans_b == 'N' ? b[p + j * ldb] : b[j + p * ldb];
                sum += static_cast<double>(megacore::to_float(x)) * megacore::to_float(y);
            }
            float& out = c[i + j * ldc];
            out = static_cast<float>((beta == 0.0f ? 0.0 : out) + sum);
        }
    }
}

}  // namespace

extern "C" {

#define MEGACORE_TEST_GEMM(name, type)          \
    void name(const char* trans_a,              \
              const char* trans_b,              \
              const int* m,                     \
              const int* n,                     \
              const int* k,                     \
              const float* alpha,               \
              const void* a,                    \
              const int* lda,                   \
              const void* b,                    \
              const int* ldb,                   \
              const float* beta,                \
              float* c,                         \
              const int* ldc) {                 \
        ASSERT_EQ(*alpha, 1.0f);                \
        plain_gemm(trans_a,                     \
                   trans_b,                     \
                   *m,                          \
                   *n,                          \
                   *k,                          \
                   static_cast<const type*>(a), \
                   *lda,                        \
                   static_cast<const type*>(b), \
                   *ldb,                        \
                   *beta,                       \
                   c,                           \
                   *ldc);                       \
    }
MEGACORE_TEST_GEMM(sgemm_, float)
MEGACORE_TEST_GEMM(gemm_bf16bf16f32_, megacore::BFloat16)
MEGACORE_TEST_GEMM(gemm_f16f16f32_, megacore::Float16)
#undef MEGACORE_TEST_GEMM
}

namespace megacore {
namespace {

/// A matrix [rows, columns] of small numbers that float32 multiplies and adds exactly.
template <class T>
struct Matrix {
    std::vector<T> values;
    std::int64_t rows, columns;
    bool transposed;

    Matrix(std::int64_t rows, std::int64_t columns, bool transposed, int seed)
        : values(static_cast<std::size_t>(rows * columns)),
          rows(rows),
          columns(columns),
          transposed(transposed) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            const auto number = static_cast<int>((i * 7 + static_cast<std::size_t>(seed)) % 11);
            values[i] = from_float<T>(static_cast<float>(number - 5) / 8.0f);
        }
    }

    float at(std::int64_t row, std::int64_t column) const {
        const std::int64_t index = transposed ? column * rows + row : row * columns + column;
        return to_float(values[static_cast<std::size_t>(index)]);
    }

    TensorView view(const char* name) {
        TensorView result{.name = name, .data = values.data(), .dtype = kDTypeOf<T>, .rank = 2};
        result.sizes = {rows, columns};
        result.strides = transposed ? std::array<std::int64_t, kMaxRank>{1, rows}
                                    : std::array<std::int64_t, kMaxRank>{columns, 1};
        return result;
    }
};

float gelu(float z) {
    const double inner = std::sqrt(2.0 / M_PI) * (z + 0.044715 * z * z * z);
    return static_cast<float>(0.5 * z * (1.0 + std::tanh(inner)));
}

template <class T>
void expect_products(std::int64_t m, std::int64_t k, std::int64_t n) {
    for (const int layout : {0, 1, 2, 3}) {
        Matrix<T> a(m, k, (layout & 1) != 0, 3);
        Matrix<T> b(k, n, (layout & 2) != 0, 5);
        Matrix<T> bias(1, n, false, 2);
        Matrix<T> residual(m, n, false, 9);
        Matrix<T> out(m, n, false, 0);
        std::vector<float> workspace(
            static_cast<std::size_t>(cpu::gemm_workspace(m, n, kDTypeOf<T>)));
        Gemm args{.out = out.view("out"), .a = a.view("a"), .b = b.view("b")};
        args.bias = contiguous_view("bias", bias.values.data(), kDTypeOf<T>, {n});
        args.residual = residual.view("residual");
        args.gelu = layout == 3;
        args.workspace = contiguous_view("workspace",
                                         workspace.data(),
                                         DType::kFloat32,
                                         {static_cast<std::int64_t>(workspace.size())});
        cpu::gemm(args);
        std::vector<float> total(static_cast<std::size_t>(m * n), 2.0f);
        Gemm sum{.out = contiguous_view("total", total.data(), DType::kFloat32, {m, n})};
        sum.a = args.a;
        sum.b = args.b;
        sum.accumulate = true;
        cpu::gemm(sum);
        for (std::int64_t row = 0; row < m; ++row) {
            for (std::int64_t column = 0; column < n; ++column) {
                float product = 0.0f;
                for (std::int64_t i = 0; i < k; ++i) product += a.at(row, i) * b.at(i, column);
                EXPECT_EQ(total[static_cast<std::size_t>(row * n + column)], 2.0f + product);
                float want = product + bias.at(0, column);
                if (args.gelu) want = gelu(want);
                want = to_float(from_float<T>(want + residual.at(row, column)));
                const float unit = kDTypeOf<T> == DType::kBFloat16 ? 0x1p-7f : 0x1p-10f;
                const float room = args.gelu ? unit * std::abs(want) + 1e-5f : 0.0f;
                ASSERT_NEAR(out.at(row, column), want, room) << row << ' ' << column;
            }
        }
    }
}

TEST(Gemm, ProductsOfEveryLayout) {
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
        if (isa > detected_isa()) continue;
        use_isa(isa);
        expect_products<float>(7, 13, 5);
        expect_products<float>(1, 1, 1);
        expect_products<float>(1, 4, 9);
        expect_products<float>(513, 2, 3);
        expect_products<float>(3, 2, 1031);
        if (*cpu::gemm_backend(DType::kBFloat16) != '\0') expect_products<BFloat16>(515, 3, 1030);
        if (*cpu::gemm_backend(DType::kFloat16) != '\0') expect_products<Float16>(9, 5, 19);
    }
    use_isa(detected_isa());
}

TEST(Gemm, AnEmptySumIsZero) {
    std::vector<float> out(6, 7.0f);
    Gemm args{.out = contiguous_view("out", out.data(), DType::kFloat32, {2, 3})};
    args.a = contiguous_view("a", out.data(), DType::kFloat32, {2, 0});
    args.b = contiguous_view("b", out.data(), DType::kFloat32, {0, 3});
    cpu::gemm(args);
    EXPECT_EQ(out, std::vector<float>(6, 0.0f));
    const int before = calls;
    args.out = contiguous_view("out", out.data(), DType::kFloat32, {0, 3});
    args.a = contiguous_view("a", out.data(), DType::kFloat32, {0, 2});
    args.b = contiguous_view("b", out.data(), DType::kFloat32, {2, 3});
    cpu::gemm(args);
    EXPECT_EQ(calls, before);
}

TEST(Gemm, BatchesMayLieBetweenRows) {
    // Two matrices [2, 2] whose rows alternate.
    std::vector<float> a{1, 2, 5, 6, 3, 4, 7, 8};
    std::vector<float> b{1, 0, 0, 1, 0, 1, 1, 0};
    std::vector<float> out(8);
    Gemm args{.out = contiguous_view("out", out.data(), DType::kFloat32, {2, 2, 2})};
    args.a = contiguous_view("a", a.data(), DType::kFloat32, {2, 2, 2});
    args.a.strides = {2, 4, 1};
    args.b = contiguous_view("b", b.data(), DType::kFloat32, {2, 2, 2});
    cpu::gemm(args);
    EXPECT_EQ(out, (std::vector<float>{1, 2, 3, 4, 6, 5, 8, 7}));
}

void expect_fault(const Gemm& args, const std::string& part) {
    try {
        cpu::gemm(args);
        FAIL() << "expected a fault with " << part;
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(Gemm, FaultsNameTheTensor) {
    std::vector<float> data(64);
    const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns) {
        return contiguous_view(name, data.data(), DType::kFloat32, {rows, columns});
    };
    const Gemm good{.out = matrix("out", 2, 4), .a = matrix("a", 2, 3), .b = matrix("b", 3, 4)};
    Gemm args = good;
    args.b = matrix("b", 2, 4);
    expect_fault(args, "b: float32 [2, 4]");
    args = good;
    args.out = matrix("out", 2, 5);
    expect_fault(args, "out: float32 [2, 5]");
    args = good;
    args.a.strides = {6, 2};
    expect_fault(args, "a: expected a stride of 1");
    args = good;
    args.b.dtype = DType::kBFloat16;
    expect_fault(args, "b: ");
    args = good;
    args.accumulate = true;
    args.gelu = true;
    expect_fault(args, "not together with accumulation");
    args = good;
    args.a.dtype = args.b.dtype = args.out.dtype = DType::kFloat64;
    expect_fault(args, "a: ");
}

}  // namespace
}  // namespace megacore
