/// Samples of several sentences: which sentences of which document belong together.
///
/// A dataset of sentences has one sequence per sentence; a document is a range of sequences. The
/// documents of a split are walked in order, epoch after epoch, until there are enough samples; a
/// sample is closed as soon as it has its target length. Lastly the samples are shuffled.
/// Bit-identical to the sample maps of Megatron-LM for the same seed.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "data/index_layout.h"
#include "data/row_buffer.h"

namespace megacore::data {

/// Sentences with more tokens make their document unusable.
inline constexpr std::int32_t kLongestSentence = 512;

/// The sentences and documents of a dataset, as its .idx file has them.
struct SentenceLayout {
    UnalignedArray<std::int32_t> lengths;     // [S] tokens per sentence
    UnalignedArray<std::int64_t> boundaries;  // [documents + 1]
};

/// What is asked of a split.
struct MappingRequest {
    std::string name;                 ///< for messages: dataset and split
    std::int64_t first_document = 0;  ///< document numbers [first, last)
    std::int64_t last_document = 0;
    std::optional<std::int64_t> num_samples;  ///< at least so many; none: exactly one epoch
    std::int64_t max_length = 0;              ///< tokens of a sample, without special ones
    std::int64_t min_sentences = 1;           ///< sentences of a sample
    std::uint32_t seed = 0;
};

/// Called now and then with the rows made so far; what it throws ends the work.
using MappingTick = std::function<void(std::int64_t rows)>;

template <class Index>
using SpanRow = std::array<Index, 3>;  // first sentence, the one behind the last, target length
template <class Index>
using BlockRow = std::array<Index, 4>;  // ... document, number of the block in its epoch

/// Samples for BERT and T5, each with a target length of its own: max_length, or with
/// `short_probability` a random one of at least 2.
/// Throws Fault when no document can be used, or the request makes no sense.
template <class Index>
void map_spans(const SentenceLayout& layout,
               const MappingRequest& request,
               double short_probability,
               const MappingTick& tick,
               RowBuffer<SpanRow<Index>>& out);

/// Blocks for the inverse cloze task: the target is max_length less the title of the document.
/// @param title_lengths  tokens of the title of every document
template <class Index>
void map_blocks(const SentenceLayout& layout,
                const MappingRequest& request,
                const UnalignedArray<std::int32_t>& title_lengths,
                const MappingTick& tick,
                RowBuffer<BlockRow<Index>>& out);

}  // namespace megacore::data
