// Plans, and one small set of indices worked out by hand from the published vectors.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "data/fault.h"
#include "data/gpt_indices.h"

namespace megacore::data {
namespace {

const std::vector<std::int32_t> kLengths{5, 0, 7, 3, 9, 2, 6, 4, 8, 1};

UnalignedArray<std::int32_t> lengths() {
    return {reinterpret_cast<const std::byte*>(kLengths.data()),
            static_cast<std::int64_t>(kLengths.size())};
}

GptRequest request(std::optional<std::int64_t> samples) {
    GptRequest r;
    r.name = "test";
    r.last_document = 8;
    r.tokens_per_epoch = count_tokens(lengths(), 0, 8);
    r.sequence_length = 4;
    r.num_samples = samples;
    return r;
}

TEST(GptIndices, PublishedVector) {
    const GptPlan plan = plan_gpt_indices(request(20));
    EXPECT_EQ(plan.num_epochs, 3);
    EXPECT_TRUE(plan.separate_final_epoch);
    EXPECT_EQ(plan.samples_before_final, 17);
    ASSERT_EQ(plan.num_samples, 26);
    for (const int threads : {1, 2}) {
        std::vector<std::int32_t> documents(24);
        std::vector<std::int64_t> samples(54);
        std::vector<std::uint32_t> shuffle(26);
        build_gpt_indices(plan, lengths(), 1234, threads, {documents, samples, shuffle, {}});
        EXPECT_EQ(documents, (std::vector<std::int32_t>{5, 3, 0, 4, 6, 2, 2, 7, 1, 1, 0, 4,
                                                        5, 6, 3, 7, 5, 1, 3, 4, 0, 7, 6, 2}));
        EXPECT_EQ(shuffle,
                  (std::vector<std::uint32_t>{7, 10, 4, 1,  12, 8,  3,  15, 14, 13, 5,  11, 0,
                                              2, 6,  9, 16, 17, 22, 25, 23, 24, 18, 21, 20, 19}));
        EXPECT_EQ(samples[22], 10);  // row 11
        EXPECT_EQ(samples[23], 1);
    }
}

TEST(GptIndices, WideShuffleIndexHoldsTheSameNumbers) {
    GptPlan plan = plan_gpt_indices(request(25));
    std::vector<std::int32_t> documents(24);
    std::vector<std::int64_t> samples(54);
    std::vector<std::uint32_t> narrow(26);
    build_gpt_indices(plan, lengths(), 1, 1, {documents, samples, narrow, {}});
    plan.wide_shuffle_index = true;
    std::vector<std::int64_t> wide(26);
    build_gpt_indices(plan, lengths(), 1, 1, {documents, samples, {}, wide});
    EXPECT_TRUE(std::equal(narrow.begin(), narrow.end(), wide.begin()));
}

TEST(GptIndices, OutputsOfAnotherSizeThrow) {
    const GptPlan plan = plan_gpt_indices(request(20));
    std::vector<std::int32_t> documents(23);
    std::vector<std::int64_t> samples(54);
    std::vector<std::uint32_t> shuffle(26);
    EXPECT_THROW(build_gpt_indices(plan, lengths(), 1, 1, {documents, samples, shuffle, {}}),
                 Error);
}

TEST(GptIndices, EmptyAndOverflowingRequestsNameTheData) {
    GptRequest empty = request(20);
    empty.tokens_per_epoch = 0;
    GptRequest huge = request(std::int64_t{1} << 62);
    huge.sequence_length = 1 << 20;
    for (const GptRequest& r : {empty, huge}) {
        try {
            plan_gpt_indices(r);
            FAIL() << "no exception";
        } catch (const Fault& error) {
            EXPECT_NE(std::string(error.what()).find("test: "), std::string::npos);
        }
    }
}

}  // namespace
}  // namespace megacore::data
