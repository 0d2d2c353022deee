/// The three indices that turn documents into shuffled samples of a fixed length.
///
/// A split has documents (sequence numbers) [first, last) with T tokens together. E epochs of them
/// are laid end to end in shuffled order (document index), cut into N samples of S tokens plus one
/// for the shifted label (sample index), and the samples are shuffled (shuffle index).
/// Bit-identical to the index files of Megatron-LM for the same seed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "data/index_layout.h"
#include "data/random_state.h"

namespace megacore::data {

/// What is asked of a split.
struct GptRequest {
    std::string name;                 ///< for messages: dataset and split
    std::int64_t first_document = 0;  ///< sequence numbers [first, last)
    std::int64_t last_document = 0;
    std::int64_t tokens_per_epoch = 0;        ///< T
    std::int64_t sequence_length = 0;         ///< S
    std::optional<std::int64_t> num_samples;  ///< none: exactly one epoch
    std::int64_t extra_tokens = 1;            ///< x: tokens beyond S, for the label of the last one
    bool drop_last = true;                    ///< drop the partial sample at the end
};

/// Sizes that follow from a request.
struct GptPlan {
    GptRequest request;
    std::int64_t num_epochs = 1;           ///< E
    std::int64_t document_index_size = 0;  ///< E * (last - first)
    std::int64_t num_samples = 0;          ///< N; the sample index has N + 1 rows
    /// The last epoch is shuffled apart, because less than 80 % of it is needed.
    bool separate_final_epoch = false;
    std::int64_t samples_before_final = 0;  ///< samples of the first E - 1 epochs, when separate
    bool wide_shuffle_index = false;        ///< int64 instead of uint32
};

/// Computes the plan in 128-bit arithmetic.
/// Throws Fault for a split without documents or tokens, or with less than one sample.
GptPlan plan_gpt_indices(const GptRequest& request);

/// Sum of the lengths of sequences [first, last).
std::int64_t count_tokens(const UnalignedArray<std::int32_t>& lengths,
                          std::int64_t first,
                          std::int64_t last);

/// Where the indices go; sizes as in the plan.
struct GptIndices {
    std::span<std::int32_t> document_index;  // [E * documents]
    std::span<std::int64_t> sample_index;    // [N + 1, 2]: position in document_index, offset
    std::span<std::uint32_t> shuffle_index;  // [N], unless wide
    std::span<std::int64_t> wide_shuffle_index;
};

/// Fills the indices. One random stream runs through both shuffles.
/// @param lengths      items per sequence of the whole dataset
/// @param num_threads  2 or more: the sample index is built beside the shuffle index
void build_gpt_indices(const GptPlan& plan,
                       const UnalignedArray<std::int32_t>& lengths,
                       std::uint32_t seed,
                       int num_threads,
                       const GptIndices& out);

}  // namespace megacore::data
