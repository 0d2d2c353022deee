/// char2 ... double4, dim3: sizes and alignments as on the device.
#pragma once

#include "cuda_emulation/keywords.h"

#define CUDA_EMULATION_VECTORS(name, T, align2, align4)                                   \
    struct name##1 { T x; };                                                              \
    struct alignas(align2) name##2 { T x, y; };                                           \
    struct name##3 { T x, y, z; };                                                        \
    struct alignas(align4) name##4 { T x, y, z, w; };                                     \
    __forceinline__ constexpr name##1 make_##name##1(T x) { return {x}; }                 \
    __forceinline__ constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    __forceinline__ constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    __forceinline__ constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_EMULATION_VECTORS(char, signed char, 2, 4)
CUDA_EMULATION_VECTORS(uchar, unsigned char, 2, 4)
CUDA_EMULATION_VECTORS(short, short, 4, 8)
CUDA_EMULATION_VECTORS(ushort, unsigned short, 4, 8)
CUDA_EMULATION_VECTORS(int, int, 8, 16)
CUDA_EMULATION_VECTORS(uint, unsigned, 8, 16)
CUDA_EMULATION_VECTORS(long, long, 16, 16)
CUDA_EMULATION_VECTORS(ulong, unsigned long, 16, 16)
CUDA_EMULATION_VECTORS(longlong, long long, 16, 16)
CUDA_EMULATION_VECTORS(ulonglong, unsigned long long, 16, 16)
CUDA_EMULATION_VECTORS(float, float, 8, 16)
CUDA_EMULATION_VECTORS(double, double, 16, 16)

#undef CUDA_EMULATION_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
        : x(x_size), y(y_size), z(z_size) {}
    constexpr dim3(uint3 sizes) : x(sizes.x), y(sizes.y), z(sizes.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
