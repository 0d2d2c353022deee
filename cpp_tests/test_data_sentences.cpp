// Random numbers and maps of samples over sentences, against the standard library and the published
// vectors.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "data/fault.h"
#include "data/mersenne64.h"
#include "data/sentence_mapping.h"

namespace megacore::data {
namespace {

const std::vector<std::int64_t> kBoundaries{0, 3, 3, 4, 9};
const std::vector<std::int32_t> kLengths{20, 30, 10, 40, 15, 25, 35, 5, 60};
const std::vector<std::int32_t> kTitles{5, 4, 3, 2};

template <class T>
UnalignedArray<T> view(const std::vector<T>& values) {
    return {reinterpret_cast<const std::byte*>(values.data()),
            static_cast<std::int64_t>(values.size())};
}

SentenceLayout layout() { return {view(kLengths), view(kBoundaries)}; }

MappingRequest request(std::optional<std::int64_t> samples, std::uint32_t seed) {
    MappingRequest r;
    r.name = "test";
    r.last_document = 4;
    r.num_samples = samples;
    r.max_length = 50;
    r.min_sentences = 2;
    r.seed = seed;
    return r;
}

template <class Row>
std::vector<Row> copied(RowBuffer<Row>& rows) {
    return {rows.rows().begin(), rows.rows().end()};
}

TEST(Mersenne64, NumbersOfTheStandardLibrary) {
    for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1235}, ~std::uint64_t{0}}) {
        Mersenne64 ours(seed);
        std::mt19937_64 theirs(seed);
        for (int i = 0; i < 2000; ++i) ASSERT_EQ(ours.next(), theirs()) << i;
    }
}

TEST(Mersenne64, ShuffleIsTheDirectLoop) {
    std::vector<std::array<std::uint32_t, 3>> rows(9001), wanted;
    for (std::uint32_t i = 0; i < rows.size(); ++i) rows[i] = {i, i + 1, 7 * i};
    wanted = rows;
    Mersenne64 random(99);
    shuffle_rows(std::span(rows), random, [] {});
    std::mt19937_64 theirs(99);
    for (std::size_t i = wanted.size() - 1; i > 0; --i) {
        std::swap(wanted[i], wanted[theirs() % (i + 1)]);
    }
    EXPECT_EQ(rows, wanted);
}

TEST(SentenceMapping, PublishedVectors) {
    const auto quiet = [](std::int64_t) {};
    RowBuffer<SpanRow<std::uint32_t>> spans;
    map_spans<std::uint32_t>(layout(), request(6, 1234), 0.1, quiet, spans);
    using Span = SpanRow<std::uint32_t>;
    EXPECT_EQ(copied(spans),
              (std::vector<Span>{
                  {7, 9, 50}, {4, 7, 50}, {0, 3, 50}, {7, 9, 50}, {4, 7, 50}, {0, 3, 50}}));
    RowBuffer<BlockRow<std::uint64_t>> blocks;
    map_blocks<std::uint64_t>(layout(), request(std::nullopt, 1), view(kTitles), quiet, blocks);
    using Block = BlockRow<std::uint64_t>;
    EXPECT_EQ(copied(blocks), (std::vector<Block>{{7, 9, 3, 2}, {4, 7, 3, 1}, {0, 3, 0, 0}}));
}

TEST(SentenceMapping, SumsOf32BitsGiveTheSameRows) {
    // Targets beyond what 16-bit sums can hold, in a document that is longer than a block of them.
    const std::vector<std::int64_t> boundaries{0, 900};
    const std::vector<std::int32_t> lengths(900, 500);
    MappingRequest r = request(std::nullopt, 3);
    r.last_document = 1;
    r.max_length = 100'000;
    RowBuffer<SpanRow<std::uint32_t>> rows;
    map_spans<std::uint32_t>({view(lengths), view(boundaries)}, r, 0.0, [](std::int64_t) {}, rows);
    std::vector<std::uint32_t> ends;
    for (const auto& row : rows.rows()) ends.push_back(row[1]);
    std::sort(ends.begin(), ends.end());
    EXPECT_EQ(ends, (std::vector<std::uint32_t>{200, 400, 600, 800, 900}));
}

TEST(SentenceMapping, FaultsInsteadOfEndlessEpochs) {
    MappingRequest r = request(10, 1);
    r.min_sentences = 6;
    RowBuffer<SpanRow<std::uint32_t>> rows;
    EXPECT_THROW(map_spans<std::uint32_t>(layout(), r, 0.1, [](std::int64_t) {}, rows), Fault);
}

}  // namespace
}  // namespace megacore::data
