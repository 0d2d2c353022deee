// core/crc32: every method against a bit-by-bit definition, published check values, splitting.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "core/crc32.h"
#include "support.h"

namespace megacore {
namespace {

/// The definition: one bit of the message at a time.
std::uint32_t bitwise(const unsigned char* data, std::size_t size, std::uint32_t seed) {
    std::uint32_t state = ~seed;
    for (std::size_t i = 0; i < size; ++i) {
        state ^= data[i];
        for (int bit = 0; bit < 8; ++bit) {
            state = (state & 1) != 0 ? (state >> 1) ^ 0xedb88320u : state >> 1;
        }
    }
    return ~state;
}

std::vector<Crc32Method> methods() {
    std::vector<Crc32Method> found;
    for (const Crc32Method method : {Crc32Method::kTable,
                                     Crc32Method::kClmul128,
                                     Crc32Method::kClmul256,
                                     Crc32Method::kClmul512}) {
        if (method <= best_crc32_method()) found.push_back(method);
    }
    return found;
}

std::vector<unsigned char> random_bytes(std::size_t size) {
    std::mt19937 random(1);
    std::vector<unsigned char> bytes(size);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<unsigned char>(random()); });
    return bytes;
}

TEST(Crc32, HasThePublishedValues) {
    // "check" and the residue of the catalogue of CRC algorithms (CRC-32/ISO-HDLC), RFC 3720's
    // patterns with this polynomial as zlib gives them.
    const std::string_view digits = "123456789";
    const std::vector<unsigned char> zeros(4096, 0), ones(4096, 0xff);
    std::vector<unsigned char> counting(256);
    std::iota(counting.begin(), counting.end(), static_cast<unsigned char>(0));
    for (const Crc32Method method : methods()) {
        SCOPED_TRACE(name_of(method));
        EXPECT_EQ(crc32_by(method, digits.data(), digits.size()), 0xcbf43926u);
        EXPECT_EQ(crc32_by(method, digits.data(), 0), 0u);
        EXPECT_EQ(crc32_by(method, digits.data(), 0, 0x12345678u), 0x12345678u);
        EXPECT_EQ(crc32_by(method, "a", 1), 0xe8b7be43u);
        EXPECT_EQ(crc32_by(method, zeros.data(), zeros.size()), 0xc71c0011u);
        EXPECT_EQ(crc32_by(method, ones.data(), ones.size()), 0xf154670au);
        EXPECT_EQ(crc32_by(method, counting.data(), counting.size()), 0x29058c73u);
    }
}

TEST(Crc32, EqualsItsDefinitionAtAnyLengthAlignmentAndSeed) {
    const std::vector<unsigned char> bytes = random_bytes(1200);
    for (std::size_t size = 0; size <= 1100; size += size < 600 ? 1 : 7) {
        const std::size_t offset = size * 37 % 65;
        const auto seed = static_cast<std::uint32_t>(size * 2654435761u);
        const std::uint32_t expected = bitwise(bytes.data() + offset, size, seed);
        for (const Crc32Method method : methods()) {
            ASSERT_EQ(crc32_by(method, bytes.data() + offset, size, seed), expected)
                << name_of(method) << " size " << size << " offset " << offset;
        }
    }
}

TEST(Crc32, DependsOnEveryBit) {
    std::vector<unsigned char> bytes = random_bytes(777);
    for (const Crc32Method method : methods()) {
        const std::uint32_t before = crc32_by(method, bytes.data(), bytes.size());
        for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
            bytes[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
            ASSERT_NE(crc32_by(method, bytes.data(), bytes.size()), before) << bit;
            bytes[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
        }
    }
}

TEST(Crc32, ContinuesAndCombines) {
    const std::vector<unsigned char> bytes = random_bytes(5000);
    const std::uint32_t whole = crc32(bytes.data(), bytes.size(), 5);
    for (std::size_t cut = 0; cut <= bytes.size(); cut += 61) {
        const std::uint32_t first = crc32(bytes.data(), cut, 5);
        EXPECT_EQ(crc32(bytes.data() + cut, bytes.size() - cut, first), whole);
        const std::uint32_t second = crc32(bytes.data() + cut, bytes.size() - cut);
        EXPECT_EQ(crc32_combine(first, second, bytes.size() - cut), whole);
    }
}

TEST(Crc32, CombinesStretchesThatNoMemoryHolds) {
    // 2^40 zero bytes, doubled from one: the checksum of a doubled stretch is known both ways.
    std::uint32_t zeros = crc32("\0", 1);
    std::uint64_t size = 1;
    for (int i = 0; i < 12; ++i, size *= 2) zeros = crc32_combine(zeros, zeros, size);
    EXPECT_EQ(zeros, 0xc71c0011u);
    for (int i = 12; i < 40; ++i, size *= 2) zeros = crc32_combine(zeros, zeros, size);
    EXPECT_EQ(crc32_combine(crc32_combine(zeros, crc32("a", 1), 1), zeros, size),
              crc32_combine(zeros, crc32_combine(crc32("a", 1), zeros, size), size + 1));
}

TEST(Crc32, InThreadsIsTheSame) {
    const std::vector<unsigned char> bytes = random_bytes((21 << 20) + 13);
    for (const std::size_t size : {std::size_t{0},
                                   std::size_t{100},
                                   std::size_t{4} << 20,
                                   (std::size_t{4} << 20) + 1,
                                   bytes.size()}) {
        for (const std::int64_t threads : {1, 2, 3, 7}) {
            EXPECT_EQ(crc32_in_threads(bytes.data(), size, 9, threads),
                      crc32(bytes.data(), size, 9))
                << size << " bytes in " << threads << " threads";
        }
    }
    testing::expect_error([] { crc32_in_threads("a", 1, 0, 0); }, {"at least one thread"});
}

TEST(Crc32, RefusesAMethodThisMachineLacks) {
    if (best_crc32_method() == Crc32Method::kClmul512) GTEST_SKIP() << "this CPU has all methods";
    testing::expect_error([] { crc32_by(Crc32Method::kClmul512, "a", 1); }, {"asked for clmul512"});
}

}  // namespace
}  // namespace megacore
