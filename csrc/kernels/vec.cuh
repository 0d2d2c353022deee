/// Vector loads and stores of float, bfloat16 and float16 on the device; arithmetic is float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

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

/// The type that the bytes of a Pack move as.
template <int kBytes>
struct WordOf {
    using type = uint4;
};
template <>
struct WordOf<8> {
    using type = uint2;
};
template <>
struct WordOf<4> {
    using type = unsigned int;
};
template <>
struct WordOf<2> {
    using type = unsigned short;
};
template <>
struct WordOf<1> {
    using type = unsigned char;
};

/// kCount elements that move with the widest accesses their size allows, 16 bytes at most.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
    using Word = typename WordOf<static_cast<int>(sizeof(T)) * kCount>::type;
    static constexpr int kWords = static_cast<int>(sizeof(T)) * kCount / sizeof(Word);

    T elements[kCount];

    static __device__ __forceinline__ Pack load(const T* source) {
        Word words[kWords];
#pragma unroll
        for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(source)[i];
        Pack pack;
        memcpy(&pack, words, sizeof(Pack));
        return pack;
    }
    /// To global memory. nvcc takes structs apart and may then write element by element, so the
    /// instruction is named.
    __device__ __forceinline__ void store(T* target) const {
        Word words[kWords];
        memcpy(words, this, sizeof(Pack));
#pragma unroll
        for (int i = 0; i < kWords; ++i) __stwb(reinterpret_cast<Word*>(target) + i, words[i]);
    }
};

/// Whether vector accesses of 16 bytes may start at `pointer`. An absent tensor never objects.
inline bool aligned16(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace megacore::cuda
