#include "core/crc32.h"

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "core/crc32_fold.h"
#include "core/math.h"
#include "core/parallel_for.h"

namespace megacore {
namespace {

// Large enough that combining costs nothing, small enough to spread a tensor over the threads.
constexpr std::int64_t kPieceBytes = 1 << 20;

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) {
            value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320u : 0u);
        }
        tables[0][byte] = value;
    }
    for (std::size_t behind = 1; behind < 8; ++behind) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t value = tables[behind - 1][byte];
            tables[behind][byte] = (value >> 8) ^ tables[0][value & 0xff];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

/// Eight bytes at a time; `state` and the result are inverted checksums.
std::uint32_t update_by_table(std::uint32_t state, const unsigned char* data, std::size_t size) {
    if constexpr (std::endian::native == std::endian::little) {
        for (; size >= 8; data += 8, size -= 8) {
            std::uint64_t word;
            std::memcpy(&word, data, 8);
            word ^= state;
            state = 0;
            for (std::size_t i = 0; i < 8; ++i) state ^= kTables[7 - i][(word >> (8 * i)) & 0xff];
        }
    }
    for (; size > 0; ++data, --size) {
        state = (state >> 8) ^ kTables[0][(state ^ *data) & 0xff];
    }
    return state;
}

Crc32Method detect() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        if (!__builtin_cpu_supports("vpclmulqdq")) return Crc32Method::kClmul128;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq")) {
            return Crc32Method::kClmul512;
        }
        if (__builtin_cpu_supports("avx2")) return Crc32Method::kClmul256;
        return Crc32Method::kClmul128;
    }
#endif
    return Crc32Method::kTable;
}

crc32_fold::Fold fold_of([[maybe_unused]] Crc32Method method) {
#if defined(__x86_64__)
    switch (method) {
        case Crc32Method::kClmul128:
            return crc32_fold::fold_128;
        case Crc32Method::kClmul256:
            return crc32_fold::fold_256;
        case Crc32Method::kClmul512:
            return crc32_fold::fold_512;
        case Crc32Method::kTable:
            break;
    }
#endif
    return nullptr;
}

std::uint32_t compute(crc32_fold::Fold fold,
                      const void* data,
                      std::size_t size,
                      std::uint32_t seed) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::uint32_t state = ~seed;
    if (fold != nullptr && size >= crc32_fold::kMinBytes) {
        const std::size_t folded_size = size / 16 * 16;
        unsigned char folded[16];
        fold(bytes, folded_size, state, folded);
        state = update_by_table(0, folded, sizeof folded);
        bytes += folded_size;
        size -= folded_size;
    }
    return ~update_by_table(state, bytes, size);
}

/// Product modulo the polynomial.
std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
    std::uint32_t product = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        if ((a & bit) != 0) product ^= b;
        b = (b >> 1) ^ ((b & 1) != 0 ? 0xedb88320u : 0u);
    }
    return product;
}

}  // namespace

const char* name_of(Crc32Method method) {
    switch (method) {
        case Crc32Method::kTable:
            return "table";
        case Crc32Method::kClmul128:
            return "clmul128";
        case Crc32Method::kClmul256:
            return "clmul256";
        case Crc32Method::kClmul512:
            return "clmul512";
    }
    return "unknown";
}

Crc32Method best_crc32_method() {
    static const Crc32Method method = detect();
    return method;
}

std::uint32_t crc32(const void* data, std::size_t size, std::uint32_t seed) {
    static const crc32_fold::Fold fold = fold_of(best_crc32_method());
    return compute(fold, data, size, seed);
}

std::uint32_t crc32_by(Crc32Method method, const void* data, std::size_t size, std::uint32_t seed) {
    MEGACORE_CHECK(method <= best_crc32_method(),
                   "this CPU computes CRC-32 by up to ",
                   name_of(best_crc32_method()),
                   ", asked for ",
                   name_of(method));
    return compute(fold_of(method), data, size, seed);
}

std::uint32_t crc32_combine(std::uint32_t first, std::uint32_t second, std::uint64_t second_size) {
    // x^(8 * second_size), by squaring.
    std::uint32_t factor = crc32_fold::power_of_x(0), square = crc32_fold::power_of_x(8);
    for (std::uint64_t left = second_size; left > 0; left >>= 1) {
        if ((left & 1) != 0) factor = multiply(factor, square);
        square = multiply(square, square);
    }
    return multiply(factor, first) ^ second;
}

std::uint32_t crc32_parallel(const void* data, std::size_t size, std::uint32_t seed) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    const auto total = static_cast<std::int64_t>(size);
    const std::int64_t num_pieces = ceil_div(total, kPieceBytes);
    if (num_pieces <= 1) return crc32(data, size, seed);
    const auto piece_size = [&](std::int64_t piece) {
        return static_cast<std::size_t>(std::min(kPieceBytes, total - piece * kPieceBytes));
    };
    std::vector<std::uint32_t> parts(static_cast<std::size_t>(num_pieces));
    parallel_for(0, num_pieces, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t piece = begin; piece < end; ++piece) {
            parts[static_cast<std::size_t>(piece)] =
                crc32(bytes + piece * kPieceBytes, piece_size(piece));
        }
    });
    for (std::int64_t piece = 0; piece < num_pieces; ++piece) {
        seed = crc32_combine(seed, parts[static_cast<std::size_t>(piece)], piece_size(piece));
    }
    return seed;
}

}  // namespace megacore
