#include "core/crc32.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/crc32_fold.h"
#include "core/math.h"

namespace megacore {
namespace {

// What a thread must have to do to be worth its start.
constexpr std::int64_t kMinShareBytes = 4 << 20;

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

Crc32Method supported() {
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

/// Whether a method agrees with the table on one stretch. A wrong checksum would make intact
/// checkpoints look damaged, on just the machines whose CPU a change was not tried on.
bool agrees(Crc32Method method) {
    std::array<unsigned char, 1023> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<unsigned char>(i * i + i / 7);
    }
    return compute(fold_of(method), bytes.data(), bytes.size(), 1) ==
           compute(nullptr, bytes.data(), bytes.size(), 1);
}

Crc32Method detect() {
    Crc32Method method = supported();
    while (!agrees(method)) method = static_cast<Crc32Method>(static_cast<int>(method) - 1);
    return method;
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

std::uint32_t crc32_in_threads(const void* data,
                               std::size_t size,
                               std::uint32_t seed,
                               std::int64_t num_threads) {
    MEGACORE_CHECK(num_threads > 0, "expected at least one thread, found ", num_threads);
    const auto* bytes = static_cast<const unsigned char*>(data);
    const auto total = static_cast<std::int64_t>(size);
    if (num_threads == 1 || total <= kMinShareBytes) return crc32(data, size, seed);
    const std::int64_t share = std::max(ceil_div(total, num_threads), kMinShareBytes);
    std::vector<std::thread> others;
    std::vector<std::uint32_t> parts(static_cast<std::size_t>(ceil_div(total, share)));
    const auto share_size = [&](std::size_t i) {
        const std::int64_t begin = static_cast<std::int64_t>(i) * share;
        return static_cast<std::size_t>(std::min(share, total - begin));
    };
    const auto work = [&](std::size_t i) {
        parts[i] = crc32(bytes + static_cast<std::int64_t>(i) * share, share_size(i));
    };
    for (std::size_t i = 1; i < parts.size(); ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
    for (std::size_t i = 0; i < parts.size(); ++i) {
        seed = crc32_combine(seed, parts[i], share_size(i));
    }
    return seed;
}

}  // namespace megacore
