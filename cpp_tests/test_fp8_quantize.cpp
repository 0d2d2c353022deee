// kernels/fp8_quantize: the codes against a search for the nearest value, every compiled
// instruction set against the portable one.
#include <cmath>
#include <limits>

#include "kernels/fp8_quantize.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_error;
using testing::IsaScope;
using testing::runnable_isas;

// The value of a code, from the definition of the formats; NaN for those that are none.
double value_of(std::uint8_t code, Fp8Format format) {
    const bool e4m3 = format == Fp8Format::kE4M3;
    const int mantissa_bits = e4m3 ? 3 : 2;
    const int bias = e4m3 ? 7 : 15;
    const int exponent = (code & 0x7f) >> mantissa_bits;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const bool special = e4m3 ? (code & 0x7f) == 0x7f : exponent == 31;
    if (special) return std::numeric_limits<double>::quiet_NaN();
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                           : std::ldexp(mantissa + (1 << mantissa_bits),
                                                        exponent - bias - mantissa_bits);
    return code & 0x80 ? -magnitude : magnitude;
}

// The code with the nearest value; of two equally near ones the even one.
std::uint8_t nearest(float x, Fp8Format format) {
    int best = 0;
    double best_distance = std::numeric_limits<double>::infinity();
    const double magnitude = std::min(std::abs(double{x}), double{fp8_max(format)});
    for (int code = 0; code < 128; ++code) {
        const double value = value_of(static_cast<std::uint8_t>(code), format);
        if (std::isnan(value)) continue;
        const double distance = std::abs(value - magnitude);
        if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
            best = code;
            best_distance = distance;
        }
    }
    return static_cast<std::uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

template <Fp8Format kFormat>
void check_codes() {
    // Every value, the middles between neighbours, and what is just beside those.
    for (int code = 0; code < 127; ++code) {
        const double low = value_of(static_cast<std::uint8_t>(code), kFormat);
        const double high = value_of(static_cast<std::uint8_t>(code + 1), kFormat);
        if (std::isnan(low)) break;
        const auto middle = static_cast<float>(std::isnan(high) ? low : (low + high) / 2);
        for (const float x : {static_cast<float>(low),
                              middle,
                              std::nextafter(middle, 0.0f),
                              std::nextafter(middle, 1e9f)}) {
            ASSERT_EQ(to_fp8<kFormat>(x), nearest(x, kFormat)) << x;
            ASSERT_EQ(to_fp8<kFormat>(-x), nearest(-x, kFormat)) << x;
        }
    }
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float x : {1e-45f, 1e-30f, 1e9f, 3e38f, infinity, -infinity}) {
        EXPECT_EQ(to_fp8<kFormat>(x), nearest(x, kFormat)) << x;
    }
    EXPECT_TRUE(
        std::isnan(value_of(to_fp8<kFormat>(std::numeric_limits<float>::quiet_NaN()), kFormat)));
}

TEST(Fp8Quantize, CodesAreNearestAndTiesEven) {
    check_codes<Fp8Format::kE4M3>();
    check_codes<Fp8Format::kE5M2>();
}

struct Result {
    std::vector<std::uint8_t> out, out_t;
    float amax = 0.0f;
    std::vector<float> inverse;
    bool operator==(const Result&) const = default;
};

template <class T>
Result run(Buffer<T>& x, DType format, std::int64_t block_rows) {
    const std::int64_t rows = x.tensor.sizes[0];
    const std::int64_t columns = x.tensor.sizes[1];
    Result result{.out = std::vector<std::uint8_t>(x.elements.size())};
    const TensorView out = contiguous_view("out", result.out.data(), format, {rows, columns});
    if (block_rows > 0) {
        const std::int64_t down = (rows + block_rows - 1) / block_rows;
        const std::int64_t across = (columns + 127) / 128;
        result.inverse.resize(static_cast<std::size_t>(down * across));
        cpu::fp8_quantize_blocks(
            {.out = out,
             .inverse =
                 contiguous_view("inverse", result.inverse.data(), DType::kFloat32, {down, across}),
             .x = x.tensor,
             .rows = block_rows,
             .columns = 128});
        return result;
    }
    result.out_t.resize(x.elements.size());
    float scale = 3.5f;
    cpu::fp8_quantize(
        {.out = out,
         .out_t = contiguous_view("out_t", result.out_t.data(), format, {columns, rows}),
         .amax = contiguous_view("amax", &result.amax, DType::kFloat32, {1}),
         .x = x.tensor,
         .scale = contiguous_view("scale", &scale, DType::kFloat32, {1})});
    return result;
}

template <class T>
void check_all() {
    for (const DType format : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
        for (const auto& [rows, columns] :
             {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 17}, {65, 130}, {129, 257}}) {
            Buffer<T> x("x", {rows, columns});
            x.fill_normal(5);
            std::vector<Result> results;
            for (const Isa isa : runnable_isas()) {
                const IsaScope scope(isa);
                for (const std::int64_t block_rows : {0, 1, 128}) {
                    results.push_back(run(x, format, block_rows));
                    EXPECT_EQ(results.back(), results[(results.size() - 1) % 3]) << name_of(isa);
                }
            }
            float largest = 0.0f;
            for (std::int64_t row = 0; row < rows; ++row) {
                for (std::int64_t column = 0; column < columns; ++column) {
                    const std::int64_t at = row * columns + column;
                    const auto value = static_cast<float>(x.at(at));
                    largest = std::max(largest, std::abs(value));
                    const std::uint8_t code = nearest(value * 3.5f, fp8_format(format));
                    ASSERT_EQ(results[0].out[static_cast<std::size_t>(at)], code);
                    ASSERT_EQ(results[0].out_t[static_cast<std::size_t>(column * rows + row)],
                              code);
                }
            }
            EXPECT_EQ(results[0].amax, largest);
        }
    }
}

TEST(Fp8Quantize, Float32) { check_all<float>(); }
TEST(Fp8Quantize, BFloat16) { check_all<BFloat16>(); }
TEST(Fp8Quantize, Float16) { check_all<Float16>(); }

TEST(Fp8Quantize, ExponentsOfBlocks) {
    for (const Fp8Format format : {Fp8Format::kE4M3, Fp8Format::kE5M2}) {
        for (const float amax : {1e-30f, 0.1f, 1.0f, 1.75f, 1.76f, 448.0f, 449.0f, 1e30f}) {
            const int exponent = fp8_block_exponent(format, std::bit_cast<std::uint32_t>(amax));
            const float scale = std::bit_cast<float>(power_of_two_bits(exponent));
            EXPECT_LE(amax * scale, fp8_max(format)) << amax;
            EXPECT_GT(amax * scale * 2.0f, fp8_max(format)) << amax;
        }
        EXPECT_EQ(fp8_block_exponent(format, 0), 0);
        EXPECT_EQ(fp8_block_exponent(format, 1), 126);  // the smallest subnormal
    }
}

TEST(Fp8Quantize, FaultsNameWhatIsWrong) {
    Buffer<float> x("x", {2, 2});
    Fp8QuantizeBlocks args{.out = x.tensor, .x = x.tensor, .rows = 2, .columns = 128};
    args.out.name = "out";
    expect_error([&] { cpu::fp8_quantize_blocks(args); }, "found out: float32");
    std::uint8_t codes[4];
    args.out = contiguous_view("out", codes, DType::kFloat8E4M3, {2, 2});
    expect_error([&] { cpu::fp8_quantize_blocks(args); }, "found 2 x 128");
}

}  // namespace
}  // namespace megacore
