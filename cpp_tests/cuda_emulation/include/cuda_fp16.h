/// Stands in for CUDA's header of this name: IEEE binary16.
#pragma once

#include "cuda_emulation/half_types.h"
#include "cuda_runtime.h"

using __half = cuda_emulation::SmallFloat<cuda_emulation::HalfFormat>;
using half = __half;
using __half2 = cuda_emulation::Pair<__half>;
using half2 = __half2;

struct __half_raw {
    unsigned short x;
};

__forceinline__ float __half2float(__half value) { return value; }
__forceinline__ __half __float2half(float value) { return __half(value); }
__forceinline__ __half __float2half_rn(float value) { return __half(value); }
__forceinline__ __half __double2half(double value) { return __half(value); }
__forceinline__ __half __int2half_rn(int value) { return __half(value); }
__forceinline__ int __half2int_rn(__half value) { return __float2int_rn(value); }
__forceinline__ __half __ushort_as_half(unsigned short bits) { return __half::from_bits(bits); }
__forceinline__ __half __short_as_half(short bits) {
    return __half::from_bits(static_cast<std::uint16_t>(bits));
}
__forceinline__ unsigned short __half_as_ushort(__half value) { return value.bits(); }
__forceinline__ short __half_as_short(__half value) { return static_cast<short>(value.bits()); }

__forceinline__ __half2 make_half2(__half x, __half y) { return {x, y}; }
__forceinline__ __half2 __halves2half2(__half x, __half y) { return {x, y}; }
__forceinline__ __half2 __half2half2(__half x) { return {x, x}; }
__forceinline__ __half2 __float2half2_rn(float x) { return {__half(x), __half(x)}; }
__forceinline__ __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
__forceinline__ __half2 __float22half2_rn(float2 pair) { return {__half(pair.x), __half(pair.y)}; }
__forceinline__ float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
__forceinline__ float __low2float(__half2 pair) { return pair.x; }
__forceinline__ float __high2float(__half2 pair) { return pair.y; }
__forceinline__ __half __low2half(__half2 pair) { return pair.x; }
__forceinline__ __half __high2half(__half2 pair) { return pair.y; }
