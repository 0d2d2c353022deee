// The CUDA emulation's small floating-point types: every code, and rounding against a search for
// the nearest neighbour.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <random>

#include "core/dtype.h"

namespace {

template <class Format>
std::map<double, std::uint32_t> positive_values() {
    std::map<double, std::uint32_t> values;
    for (std::uint32_t code = 0; code <= Format::kLargest; ++code) {
        values[Format::decode(code)] = code;
    }
    return values;
}

// The code that IEEE rounding to nearest even gives for a positive value up to the largest.
std::uint32_t nearest(const std::map<double, std::uint32_t>& values, double value) {
    const auto above = values.lower_bound(value);
    if (above->first == value || above == values.begin()) return above->second;
    const auto below = std::prev(above);
    const double up = above->first - value;
    const double down = value - below->first;
    if (up != down) return up < down ? above->second : below->second;
    return above->second % 2 == 0 ? above->second : below->second;
}

template <class Format>
void check_format(double largest) {
    const std::map<double, std::uint32_t> values = positive_values<Format>();
    EXPECT_EQ(values.size(), Format::kLargest + 1);  // all different
    EXPECT_EQ(values.rbegin()->first, largest);
    for (auto at = values.begin(); std::next(at) != values.end(); ++at) {
        const double next = std::next(at)->first;
        // The code itself, the middle to the next, and both sides of the middle.
        const double middle = (at->first + next) / 2;
        for (const double value :
             {at->first, middle, std::nextafter(middle, 0.0), std::nextafter(middle, next)}) {
            const std::uint32_t expected = nearest(values, value);
            ASSERT_EQ(Format::encode(value), expected) << value;
            ASSERT_EQ(Format::encode(-value), expected | Format::kSign) << -value;
        }
    }
    EXPECT_EQ(Format::encode(NAN), Format::kNan);
    EXPECT_TRUE(std::isnan(Format::decode(Format::kNan)));
    EXPECT_EQ(Format::encode(1e300, true), Format::kLargest);
    EXPECT_EQ(Format::encode(-INFINITY, true), Format::kLargest | Format::kSign);
}

TEST(CudaNumbers, BFloat16) {
    using Format = cuda_emulation::BFloat16Format;
    check_format<Format>(0x1.fep127);
    EXPECT_EQ(Format::encode(0x1.ffp127), 0x7f80u);
    EXPECT_EQ(Format::decode(0xff80), -INFINITY);
}

TEST(CudaNumbers, Half) {
    using Format = cuda_emulation::HalfFormat;
    check_format<Format>(65504.0);
    EXPECT_EQ(Format::encode(65519.0), 0x7bffu);
    EXPECT_EQ(Format::encode(65520.0), 0x7c00u);
}

TEST(CudaNumbers, E4M3HasNoInfinity) {
    using Format = cuda_emulation::E4M3Format;
    check_format<Format>(448.0);
    EXPECT_EQ(Format::encode(464.0), 0x7eu);  // the middle to 480 goes to the even one
    EXPECT_EQ(Format::encode(465.0), 0x7fu);
    EXPECT_EQ(Format::encode(INFINITY), 0x7fu);
    EXPECT_EQ(Format::decode(0x01), 0x1p-9f);
}

TEST(CudaNumbers, E5M2) {
    using Format = cuda_emulation::E5M2Format;
    check_format<Format>(57344.0);
    EXPECT_EQ(Format::encode(1e9), 0x7cu);
    EXPECT_EQ(Format::decode(0x01), 0x1p-16f);
}

TEST(CudaNumbers, AgreeWithTheStorageTypes) {
    std::mt19937 engine(1);
    for (int i = 0; i < 200000; ++i) {
        const float value = std::bit_cast<float>(static_cast<std::uint32_t>(engine()));
        if (std::isnan(value)) continue;
        ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(value)),
                  megacore::from_float<megacore::BFloat16>(value).bits)
            << value;
        ASSERT_EQ(__half_as_ushort(__float2half_rn(value)),
                  megacore::from_float<megacore::Float16>(value).bits)
            << value;
    }
}

TEST(CudaNumbers, Arithmetic) {
    const __half third(1.0f / 3.0f);
    EXPECT_EQ(__half2float(third + third), 0x1.554p-1f);
    EXPECT_EQ(__half2float(__hmul(third, __half(3.0f))), 1.0f);  // 0.99975.. + rounding
    EXPECT_EQ(__bfloat162float(__nv_bfloat16(1.0f) + __nv_bfloat16(0x1p-9f)), 1.0f);
    EXPECT_EQ(__half2float(__habs(__half(-2.5f))), 2.5f);
    EXPECT_EQ(__half2float(__hmax(__half(NAN), __half(1.0f))), 1.0f);
    EXPECT_TRUE(__hisnan(__half(NAN)));
    const float2 pair = __bfloat1622float2(__hfma2(__floats2bfloat162_rn(2.0f, 3.0f),
                                                   __float2bfloat162_rn(4.0f),
                                                   __floats2bfloat162_rn(0.5f, -1.0f)));
    EXPECT_EQ(pair.x, 8.5f);
    EXPECT_EQ(pair.y, 11.0f);
    // One rounding, not two: 1 + 2^-11 + 2^-24 lies above the middle between two halfs.
    const __half a = __half(1.0f + 0x1p-10f);
    EXPECT_EQ(__half2float(__hfma(__half(0x1p-12f), __half(0x1p-12f), __half(1.0f))), 1.0f);
    EXPECT_EQ(__half2float(__hfma(a, __half(0x1p-11f), __half(1.0f))), 1.0f + 0x1p-10f);
    EXPECT_EQ(__nv_cvt_float_to_fp8(1000.0f, __NV_SATFINITE, __NV_E4M3), 0x7e);
    EXPECT_EQ(static_cast<float>(__nv_fp8_e4m3(0.3f)), 0.3125f);
    EXPECT_EQ(static_cast<float>(__nv_fp8_e5m2(-0.3f)), -0.3125f);
    const float4 four = static_cast<float4>(__nv_fp8x4_e4m3(float4{1.0f, -2.0f, 0.5f, 500.0f}));
    EXPECT_EQ(four.x + four.y + four.z + four.w, 447.5f);
}

TEST(CudaNumbers, IntegerIntrinsics) {
    EXPECT_EQ(__brev(0x00000003u), 0xc0000000u);
    EXPECT_EQ(__clz(1), 31);
    EXPECT_EQ(__clz(0), 32);
    EXPECT_EQ(__ffs(0), 0);
    EXPECT_EQ(__ffs(24), 4);
    EXPECT_EQ(__popc(0xf0f0u), 8);
    EXPECT_EQ(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
    EXPECT_EQ(__mulhi(-2, 1 << 30), -1);
    EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7610u), 0x77661100u);
    EXPECT_EQ(__byte_perm(0x000080ffu, 0u, 0x98d9u), 0xffff00ffu);
    EXPECT_EQ(__funnelshift_l(0x80000000u, 1u, 1), 3u);
    EXPECT_EQ(__funnelshift_r(2u, 1u, 1), 0x80000001u);
    EXPECT_EQ(__float2int_rn(2.5f), 2);
    EXPECT_EQ(__float2int_rz(-2.9f), -2);
    EXPECT_EQ(__float2int_rn(1e20f), 2147483647);
    EXPECT_EQ(__float2int_rn(NAN), 0);
}

}  // namespace
