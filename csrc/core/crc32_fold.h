/// Between crc32.cpp and crc32_fold.cpp: folding with vector instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megacore::crc32_fold {

/// x^n modulo the polynomial, for n >= 0. Bit 31 is the coefficient of 1.
constexpr std::uint32_t power_of_x(std::uint64_t n) {
    std::uint32_t value = 0x80000000u;
    for (; n > 0; --n) value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320u : 0u);
    return value;
}

/// Folds `size` bytes, at least kMinBytes and a multiple of 16, into 16 bytes that leave the same
/// remainder. `state` (the inverted checksum so far) is added to the first four bytes.
using Fold = void (*)(const unsigned char* data,
                      std::size_t size,
                      std::uint32_t state,
                      unsigned char* folded);

/// The largest number of bytes that a method takes at once.
constexpr std::size_t kMinBytes = 256;

#if defined(__x86_64__)
void fold_128(const unsigned char* data, std::size_t size, std::uint32_t state, unsigned char* out);
void fold_256(const unsigned char* data, std::size_t size, std::uint32_t state, unsigned char* out);
void fold_512(const unsigned char* data, std::size_t size, std::uint32_t state, unsigned char* out);
#endif

}  // namespace megacore::crc32_fold
