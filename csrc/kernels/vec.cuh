/// Vector loads and stores of float, bfloat16 and float16 on the device; arithmetic is float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/dtype.h"

namespace megacore::cuda {

/// Device type of a storage type of core/dtype.h.
template <class T>
struct DeviceType {
    using type = T;
};
template <>
struct DeviceType<BFloat16> {
    using type = __nv_bfloat16;
};
template <>
struct DeviceType<Float16> {
    using type = __half;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }

/// Round to nearest even.
template <class T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
    return __float2half_rn(value);
}

/// kCount elements that move with the widest accesses their size allows, 16 bytes at most.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
    T elements[kCount];

    static __device__ __forceinline__ Pack load(const T* source) {
        return *reinterpret_cast<const Pack*>(source);
    }
    __device__ __forceinline__ void store(T* target) const {
        *reinterpret_cast<Pack*>(target) = *this;
    }
};

/// Whether vector accesses of 16 bytes may start at `pointer`. An absent tensor never objects.
inline bool aligned16(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace megacore::cuda
