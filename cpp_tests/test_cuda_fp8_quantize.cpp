// The CUDA kernels of fp8_quantize.h under the emulation: the bits of the CPU kernels, under
// several orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/fp8_quantize.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using Codes = std::vector<std::uint8_t>;

constexpr unsigned kSeeds = 3;

template <class T>
void check_tensor(std::int64_t rows, std::int64_t columns, DType format, std::size_t offset) {
    Buffer<T> x("x", {rows, columns});
    x.fill_normal(7);
    float scale = 20.0f, amax = 1.0f;
    Codes out(x.elements.size()), out_t(x.elements.size());
    Fp8Quantize args{.out = contiguous_view("out", out.data(), format, {rows, columns}),
                     .out_t = contiguous_view("out_t", out_t.data(), format, {columns, rows}),
                     .amax = contiguous_view("amax", &amax, DType::kFloat32, {1}),
                     .x = x.tensor,
                     .scale = contiguous_view("scale", &scale, DType::kFloat32, {1})};
    cpu::fp8_quantize(args);
    const TensorView with_transpose = args.out_t;
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        cuda_emulation::settings() = {.seed = seed};
        const DeviceArray<T> x_("x", x.elements, offset);
        const DeviceArray<std::uint8_t> out_("out", out.size()), out_t_("out_t", out.size());
        const DeviceArray<float> scale_("scale", std::vector<float>{scale});
        const DeviceArray<float> amax_("amax", std::vector<float>{1.0f});
        args.x.data = x_.data();
        args.out.data = out_.data();
        args.scale.data = scale_.data();
        args.amax.data = amax_.data();
        args.out_t = seed == 2 ? TensorView{.name = "out_t"} : with_transpose;
        if (seed != 2) args.out_t.data = out_t_.data();
        cuda::fp8_quantize(args, nullptr);
        EXPECT_EQ(out_.values(), out);
        EXPECT_EQ(amax_.values()[0], amax);
        if (seed != 2) {
            EXPECT_EQ(out_t_.values(), out_t);
        }
    }
}

template <class T>
void check_blocks(std::int64_t rows, std::int64_t columns, DType format, std::int64_t block_rows) {
    Buffer<T> x("x", {rows, columns});
    x.fill_normal(8);
    const std::int64_t down = (rows + block_rows - 1) / block_rows;
    const std::int64_t across = (columns + 127) / 128;
    Codes out(x.elements.size());
    std::vector<float> inverse(static_cast<std::size_t>(down * across));
    Fp8QuantizeBlocks args{
        .out = contiguous_view("out", out.data(), format, {rows, columns}),
        .inverse = contiguous_view("inverse", inverse.data(), DType::kFloat32, {down, across}),
        .x = x.tensor,
        .rows = block_rows,
        .columns = 128};
    cpu::fp8_quantize_blocks(args);
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        cuda_emulation::settings() = {.seed = seed};
        const DeviceArray<T> x_("x", x.elements);
        const DeviceArray<std::uint8_t> out_("out", out.size());
        const DeviceArray<float> inverse_("inverse", inverse.size());
        args.x.data = x_.data();
        args.out.data = out_.data();
        args.inverse.data = inverse_.data();
        cuda::fp8_quantize_blocks(args, nullptr);
        EXPECT_EQ(out_.values(), out);
        EXPECT_EQ(inverse_.values(), inverse);
    }
}

template <class T>
void check_all() {
    for (const DType format : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
        SCOPED_TRACE(name_of(format));
        check_tensor<T>(1, 1, format, 0);
        check_tensor<T>(65, 136, format, 0);
        check_tensor<T>(64, 128, format, sizeof(T));  // nothing is aligned
        check_tensor<T>(7, 131, format, 0);
        check_blocks<T>(3, 131, format, 1);
        check_blocks<T>(129, 130, format, 128);
    }
    cuda_emulation::settings() = {};
}

TEST(CudaFp8Quantize, Float32) { check_all<float>(); }
TEST(CudaFp8Quantize, BFloat16) { check_all<BFloat16>(); }
TEST(CudaFp8Quantize, Float16) { check_all<Float16>(); }

}  // namespace
}  // namespace megacore
