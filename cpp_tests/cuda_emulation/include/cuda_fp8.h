/// Stands in for CUDA's header of this name: E4M3 (no infinity) and E5M2.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned;

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

__forceinline__ __nv_fp8_storage_t __nv_cvt_double_to_fp8(double value,
                                                          __nv_saturation_t saturation,
                                                          __nv_fp8_interpretation_t format) {
    const bool saturate = saturation == __NV_SATFINITE;
    return static_cast<__nv_fp8_storage_t>(
        format == __NV_E4M3 ? cuda_emulation::E4M3Format::encode(value, saturate)
                            : cuda_emulation::E5M2Format::encode(value, saturate));
}
__forceinline__ __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value,
                                                         __nv_saturation_t saturation,
                                                         __nv_fp8_interpretation_t format) {
    return __nv_cvt_double_to_fp8(value, saturation, format);
}
__forceinline__ __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 pair,
                                                              __nv_saturation_t saturation,
                                                              __nv_fp8_interpretation_t format) {
    return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(pair.x, saturation, format) |
                                             __nv_cvt_float_to_fp8(pair.y, saturation, format)
                                                 << 8);
}
/// float16 holds every value of both formats.
__forceinline__ __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t bits,
                                                   __nv_fp8_interpretation_t format) {
    const float value = format == __NV_E4M3 ? cuda_emulation::E4M3Format::decode(bits)
                                            : cuda_emulation::E5M2Format::decode(bits);
    return {__half(value).bits()};
}

namespace cuda_emulation {

/// Constructors saturate, as CUDA's do.
template <class Format>
struct Fp8 {
    __nv_fp8_storage_t __x;

    Fp8() = default;
    template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
    CUDA_EMULATION_UNCHECKED explicit Fp8(Number value)
        : __x(static_cast<__nv_fp8_storage_t>(Format::encode(static_cast<double>(value), true))) {}
    explicit Fp8(__half value) : Fp8(static_cast<float>(value)) {}
    explicit Fp8(__nv_bfloat16 value) : Fp8(static_cast<float>(value)) {}
    CUDA_EMULATION_UNCHECKED explicit operator float() const { return Format::decode(__x); }
    explicit operator __half() const { return __half(static_cast<float>(*this)); }
    explicit operator __nv_bfloat16() const { return __nv_bfloat16(static_cast<float>(*this)); }
};

/// Four of them in a register.
template <class Format>
struct Fp8x4 {
    __nv_fp8x4_storage_t __x;

    Fp8x4() = default;
    explicit Fp8x4(float4 v)
        : __x(Fp8<Format>(v.x).__x | unsigned{Fp8<Format>(v.y).__x} << 8 |
              unsigned{Fp8<Format>(v.z).__x} << 16 | unsigned{Fp8<Format>(v.w).__x} << 24) {}
    explicit operator float4() const {
        return {Format::decode(__x & 0xffu),
                Format::decode(__x >> 8 & 0xffu),
                Format::decode(__x >> 16 & 0xffu),
                Format::decode(__x >> 24)};
    }
};

}  // namespace cuda_emulation

using __nv_fp8_e4m3 = cuda_emulation::Fp8<cuda_emulation::E4M3Format>;
using __nv_fp8_e5m2 = cuda_emulation::Fp8<cuda_emulation::E5M2Format>;
using __nv_fp8x4_e4m3 = cuda_emulation::Fp8x4<cuda_emulation::E4M3Format>;
using __nv_fp8x4_e5m2 = cuda_emulation::Fp8x4<cuda_emulation::E5M2Format>;
