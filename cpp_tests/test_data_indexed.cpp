// Writer, reader and gather together, on files in a temporary folder.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "data/fault.h"
#include "data/gpt_gather.h"
#include "data/gpt_indices.h"
#include "data/indexed_reader.h"
#include "data/indexed_writer.h"

namespace megacore::data {
namespace {

class IndexedDataset : public testing::Test {
protected:
    void SetUp() override {
        folder_ = std::filesystem::path(testing::TempDir()) /
                  ("indexed-" +
                   std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
        std::filesystem::remove_all(folder_);
        std::filesystem::create_directories(folder_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    std::string prefix(const std::string& name = "data") const { return folder_ / name; }

    /// Sequence i holds i, i + 1, ...
    void write(const std::string& name, const std::vector<std::int64_t>& lengths) const {
        IndexedWriter writer(prefix(name), TokenType::kInt32, false);
        std::vector<std::int32_t> items;
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            for (std::int64_t k = 0; k < lengths[i]; ++k) {
                items.push_back(static_cast<std::int32_t>(i) + static_cast<std::int32_t>(k));
            }
        }
        const std::vector<std::int64_t> ones(lengths.size(), 1);
        writer.add_documents(
            items.data(), static_cast<std::int64_t>(items.size()), lengths, ones, {});
        writer.finalize();
    }

    std::filesystem::path folder_;
};

TEST_F(IndexedDataset, ReadsWhatWasWritten) {
    write("data", {3, 0, 100000, 1});
    for (const bool mmap : {true, false}) {
        const IndexedReader reader(prefix(), {.mmap = mmap});
        ASSERT_EQ(reader.num_sequences(), 4);
        EXPECT_EQ(reader.num_items(), 100004);
        std::vector<std::int32_t> items(2);
        reader.read(2, 99998, 2, items.data());
        EXPECT_EQ(items, (std::vector<std::int32_t>{100000, 100001}));
        EXPECT_THROW(reader.read(2, 99999, 2, items.data()), Fault);
        EXPECT_THROW(reader.read(4, 0, 0, items.data()), Fault);
    }
}

TEST_F(IndexedDataset, NothingAppearsBeforeFinalize) {
    {
        IndexedWriter writer(prefix(), TokenType::kInt32, false);
        EXPECT_THROW(IndexedWriter(prefix(), TokenType::kInt32, false), Fault);
        EXPECT_FALSE(std::filesystem::exists(prefix() + ".idx"));
    }
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(IndexedDataset, InterruptedPublicationIsCompleted) {
    write("data", {1});
    write("new", {7, 7});
    std::filesystem::rename(prefix("new") + ".idx", prefix() + ".idx.committed");
    std::filesystem::rename(prefix("new") + ".bin", prefix() + ".bin.partial");
    const IndexedReader reader(prefix(), {});
    EXPECT_EQ(reader.num_sequences(), 2);
    EXPECT_EQ(reader.num_items(), 14);
}

TEST_F(IndexedDataset, TruncatedWhileInUse) {
    write("data", {1000});
    const IndexedReader reader(prefix(), {.mmap = false});
    std::filesystem::resize_file(prefix() + ".bin", 10);
    std::vector<std::int32_t> items(1000);
    EXPECT_THROW(reader.read(0, 0, 1000, items.data()), Fault);
}

TEST_F(IndexedDataset, GatherEqualsReadingByHand) {
    const std::vector<std::int64_t> lengths{30, 0, 7, 55, 1, 12, 90, 3};
    write("data", lengths);
    for (const bool mmap : {true, false}) {
        const auto reader =
            std::make_shared<IndexedReader>(prefix(), IndexedReader::Options{.mmap = mmap});
        GptRequest request;
        request.name = "test";
        request.last_document = 8;
        request.tokens_per_epoch = count_tokens(reader->lengths(), 0, 8);
        request.sequence_length = 13;
        const GptPlan plan = plan_gpt_indices(request);
        const auto n = static_cast<std::size_t>(plan.num_samples);
        std::vector<std::int32_t> documents(8);
        std::vector<std::int64_t> rows(2 * (n + 1));
        std::vector<std::uint32_t> shuffle(n);
        build_gpt_indices(plan, reader->lengths(), 3, 1, {documents, rows, shuffle, {}});

        // The concatenated documents: sample r is tokens [13 r, 13 r + 14) of them.
        std::vector<std::int64_t> text;
        for (const std::int32_t d : documents) {
            for (std::int64_t k = 0; k < lengths[static_cast<std::size_t>(d)]; ++k) {
                text.push_back(d + k);
            }
        }
        const GptGather gather(make_token_source(reader), {documents, rows, shuffle, {}}, 13, -1);
        std::vector<std::int64_t> samples(n);
        std::iota(samples.begin(), samples.end(), 0);
        std::vector<std::int64_t> tokens(13 * n);
        std::vector<std::int64_t> labels(13 * n);
        gather.gather(samples, samples, 1000, tokens.data(), labels.data());
        for (std::size_t i = 0; i < n; ++i) {
            for (std::size_t k = 0; k < 13; ++k) {
                EXPECT_EQ(tokens[13 * i + k], text[13 * shuffle[i] + k]);
                EXPECT_EQ(labels[13 * i + k], text[13 * shuffle[i] + k + 1]);
            }
        }
        EXPECT_THROW(gather.gather(samples, samples, 50, tokens.data(), labels.data()), Fault);
    }
}

TEST(FinishBatch, CutsAndMasksEachRow) {
    std::vector<std::int64_t> tokens{1, 9, 2, 9, /**/ 9, 3, 4, 5};
    std::vector<std::int64_t> labels{9, 2, 9, 6, /**/ 3, 4, 5, 9};
    std::vector<float> mask(8);
    std::vector<std::int64_t> positions(8);
    const BatchRules rules{
        .eod = 9, .pad = 4, .mask_eod_loss = true, .reset_position_ids = true, .cut_at_eod = true};
    const auto starts =
        finish_batch(2, 4, rules, tokens.data(), labels.data(), mask.data(), positions.data());
    EXPECT_EQ(starts, (std::vector<std::int32_t>{0, 2, 4, 5, 8}));
    EXPECT_EQ(positions, (std::vector<std::int64_t>{0, 1, 0, 1, 0, 0, 1, 2}));
    EXPECT_EQ(mask, (std::vector<float>{1, 0, 1, 0, 0, 0, 1, 1}));
    EXPECT_EQ(tokens, (std::vector<std::int64_t>{1, 9, 2, 9, 9, 3, 0, 5}));
    EXPECT_EQ(labels, (std::vector<std::int64_t>{9, 2, 9, 6, 3, 0, 5, 9}));
}

}  // namespace
}  // namespace megacore::data
