/// CRC-32 of zip archives (reflected polynomial 0xedb88320), as zlib computes it.
///
/// Folding with carry-less multiplication where the CPU has it: V. Gopal et al., "Fast CRC
/// Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009.
#pragma once

#include <cstddef>
#include <cstdint>

namespace megacore {

/// How a checksum is computed; all give the same result. Weakest first.
enum class Crc32Method { kTable, kClmul128, kClmul256, kClmul512 };

/// "table", "clmul128", "clmul256" or "clmul512".
const char* name_of(Crc32Method method);

/// The strongest method that this machine can run.
Crc32Method best_crc32_method();

/// Checksum of `size` bytes that follow bytes with checksum `seed` (0: nothing precedes).
std::uint32_t crc32(const void* data, std::size_t size, std::uint32_t seed = 0);

/// The same by one method. Throws where the machine cannot run it.
std::uint32_t crc32_by(Crc32Method method,
                       const void* data,
                       std::size_t size,
                       std::uint32_t seed = 0);

/// The same by up to `num_threads` threads, the caller's among them. Their own, not the pool's: the
/// library that reads checkpoints has none.
std::uint32_t crc32_in_threads(const void* data,
                               std::size_t size,
                               std::uint32_t seed,
                               std::int64_t num_threads);

/// Checksum of two stretches of bytes from that of each: `first`, then `second` of `second_size`
/// bytes.
std::uint32_t crc32_combine(std::uint32_t first, std::uint32_t second, std::uint64_t second_size);

}  // namespace megacore
