/// Stands in for CUDA's header of this name: the upper half of a float32.
#pragma once

#include "cuda_emulation/half_types.h"
#include "cuda_runtime.h"

using __nv_bfloat16 = cuda_emulation::SmallFloat<cuda_emulation::BFloat16Format>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = cuda_emulation::Pair<__nv_bfloat16>;
using nv_bfloat162 = __nv_bfloat162;

struct __nv_bfloat16_raw {
    unsigned short x;
};

__forceinline__ float __bfloat162float(__nv_bfloat16 value) { return value; }
__forceinline__ __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
__forceinline__ __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
__forceinline__ __nv_bfloat16 __double2bfloat16(double value) { return __nv_bfloat16(value); }
__forceinline__ __nv_bfloat16 __int2bfloat16_rn(int value) { return __nv_bfloat16(value); }
__forceinline__ int __bfloat162int_rn(__nv_bfloat16 value) { return __float2int_rn(value); }
__forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return __nv_bfloat16::from_bits(bits);
}
__forceinline__ __nv_bfloat16 __short_as_bfloat16(short bits) {
    return __nv_bfloat16::from_bits(static_cast<std::uint16_t>(bits));
}
__forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits(); }
__forceinline__ short __bfloat16_as_short(__nv_bfloat16 value) {
    return static_cast<short>(value.bits());
}

__forceinline__ __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
__forceinline__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
__forceinline__ __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
__forceinline__ __nv_bfloat162 __float2bfloat162_rn(float x) {
    return {__nv_bfloat16(x), __nv_bfloat16(x)};
}
__forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
__forceinline__ __nv_bfloat162 __float22bfloat162_rn(float2 pair) {
    return {__nv_bfloat16(pair.x), __nv_bfloat16(pair.y)};
}
__forceinline__ float2 __bfloat1622float2(__nv_bfloat162 pair) { return {pair.x, pair.y}; }
__forceinline__ float __low2float(__nv_bfloat162 pair) { return pair.x; }
__forceinline__ float __high2float(__nv_bfloat162 pair) { return pair.y; }
__forceinline__ __nv_bfloat16 __low2bfloat16(__nv_bfloat162 pair) { return pair.x; }
__forceinline__ __nv_bfloat16 __high2bfloat16(__nv_bfloat162 pair) { return pair.y; }
