#include "core/crc32_fold.h"

#if defined(__x86_64__)
#include <immintrin.h>

// GCC 12 warns about the deliberately undefined registers in its own vector intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// The rest of the file is built for the baseline; each function asks for what it needs, and is
// called only where the CPU has it.
#define MEGACORE_TARGET_128 __attribute__((target("pclmul,sse4.1")))
#define MEGACORE_TARGET_256 __attribute__((target("pclmul,vpclmulqdq,avx2")))
#define MEGACORE_TARGET_512 __attribute__((target("pclmul,vpclmulqdq,avx512f,avx512vl,avx512dq")))

namespace megacore::crc32_fold {
namespace {

// What moves a 128-bit block forward by a number of bytes: its low half is multiplied by
// x^(bits + 32), its high half by x^(bits - 32). The bit order is reversed and 64-bit products of
// reversed numbers come out shifted by one, hence the shift here.
struct Constants {
    std::uint64_t low, high;
};

constexpr Constants advance(std::uint64_t num_bytes) {
    return {std::uint64_t{power_of_x(8 * num_bytes + 32)} << 1,
            std::uint64_t{power_of_x(8 * num_bytes - 32)} << 1};
}

static_assert(advance(64).low == 0x154442bd4u && advance(64).high == 0x1c6e41596u);
static_assert(advance(16).low == 0x1751997d0u && advance(16).high == 0x0ccaa009eu);

MEGACORE_TARGET_128 inline __m128i load(const unsigned char* data) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

MEGACORE_TARGET_128 inline __m128i constants_128(Constants k) {
    return _mm_set_epi64x(static_cast<long long>(k.high), static_cast<long long>(k.low));
}

MEGACORE_TARGET_128 inline __m128i step(__m128i block, __m128i k, __m128i next) {
    const __m128i low = _mm_clmulepi64_si128(block, k, 0x00);
    const __m128i high = _mm_clmulepi64_si128(block, k, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/// Folds what is left, 16 bytes at a time.
MEGACORE_TARGET_128 inline void finish(__m128i block,
                                       const unsigned char* data,
                                       const unsigned char* end,
                                       unsigned char* out) {
    const __m128i k = constants_128(advance(16));
    for (; data != end; data += 16) block = step(block, k, load(data));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), block);
}

MEGACORE_TARGET_256 inline __m256i load_256(const unsigned char* data) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
}

MEGACORE_TARGET_256 inline __m256i constants_256(Constants k) {
    return _mm256_broadcastsi128_si256(constants_128(k));
}

MEGACORE_TARGET_256 inline __m256i step(__m256i block, __m256i k, __m256i next) {
    const __m256i low = _mm256_clmulepi64_epi128(block, k, 0x00);
    const __m256i high = _mm256_clmulepi64_epi128(block, k, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

MEGACORE_TARGET_512 inline __m512i load_512(const unsigned char* data) {
    return _mm512_loadu_si512(data);
}

MEGACORE_TARGET_512 inline __m512i constants_512(Constants k) {
    return _mm512_broadcast_i32x4(constants_128(k));
}

MEGACORE_TARGET_512 inline __m512i step(__m512i block, __m512i k, __m512i next) {
    const __m512i low = _mm512_clmulepi64_epi128(block, k, 0x00);
    const __m512i high = _mm512_clmulepi64_epi128(block, k, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // the exclusive or of three
}

}  // namespace

// Four independent chains in each, since a multiplication takes several cycles.

MEGACORE_TARGET_128 void fold_128(const unsigned char* data,
                                  std::size_t size,
                                  std::uint32_t state,
                                  unsigned char* out) {
    const unsigned char* end = data + size;
    __m128i a = _mm_xor_si128(load(data), _mm_cvtsi32_si128(static_cast<int>(state)));
    __m128i b = load(data + 16), c = load(data + 32), d = load(data + 48);
    const __m128i k = constants_128(advance(64));
    for (data += 64; end - data >= 64; data += 64) {
        a = step(a, k, load(data));
        b = step(b, k, load(data + 16));
        c = step(c, k, load(data + 32));
        d = step(d, k, load(data + 48));
    }
    const __m128i k16 = constants_128(advance(16));
    finish(step(step(step(a, k16, b), k16, c), k16, d), data, end, out);
}

MEGACORE_TARGET_256 void fold_256(const unsigned char* data,
                                  std::size_t size,
                                  std::uint32_t state,
                                  unsigned char* out) {
    const unsigned char* end = data + size;
    const __m128i first = _mm_cvtsi32_si128(static_cast<int>(state));
    __m256i a = _mm256_xor_si256(load_256(data), _mm256_zextsi128_si256(first));
    __m256i b = load_256(data + 32), c = load_256(data + 64), d = load_256(data + 96);
    const __m256i k = constants_256(advance(128));
    for (data += 128; end - data >= 128; data += 128) {
        a = step(a, k, load_256(data));
        b = step(b, k, load_256(data + 32));
        c = step(c, k, load_256(data + 64));
        d = step(d, k, load_256(data + 96));
    }
    const __m256i k32 = constants_256(advance(32));
    const __m256i all = step(step(step(a, k32, b), k32, c), k32, d);
    const __m128i k16 = constants_128(advance(16));
    finish(
        step(_mm256_castsi256_si128(all), k16, _mm256_extracti128_si256(all, 1)), data, end, out);
}

MEGACORE_TARGET_512 void fold_512(const unsigned char* data,
                                  std::size_t size,
                                  std::uint32_t state,
                                  unsigned char* out) {
    const unsigned char* end = data + size;
    const __m128i first = _mm_cvtsi32_si128(static_cast<int>(state));
    __m512i a = _mm512_xor_si512(load_512(data), _mm512_zextsi128_si512(first));
    __m512i b = load_512(data + 64), c = load_512(data + 128), d = load_512(data + 192);
    const __m512i k = constants_512(advance(256));
    for (data += 256; end - data >= 256; data += 256) {
        a = step(a, k, load_512(data));
        b = step(b, k, load_512(data + 64));
        c = step(c, k, load_512(data + 128));
        d = step(d, k, load_512(data + 192));
    }
    const __m512i k64 = constants_512(advance(64));
    const __m512i all = step(step(step(a, k64, b), k64, c), k64, d);
    alignas(64) unsigned char lanes[64];
    _mm512_store_si512(lanes, all);
    const __m128i k16 = constants_128(advance(16));
    __m128i block = step(load(lanes), k16, load(lanes + 16));
    block = step(block, k16, load(lanes + 32));
    finish(step(block, k16, load(lanes + 48)), data, end, out);
}

}  // namespace megacore::crc32_fold
#endif
