/// Turns sample numbers into batches of tokens and labels.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data/token_source.h"

namespace megacore::data {

/// The indices of one split (see gpt_indices.h), wherever they live; one shuffle index is empty.
struct GptIndexView {
    std::span<const std::int32_t> document_index;
    std::span<const std::int64_t> sample_index;  // [N + 1, 2]
    std::span<const std::uint32_t> shuffle_index;
    std::span<const std::int64_t> wide_shuffle_index;

    std::int64_t num_samples() const {
        return static_cast<std::int64_t>(shuffle_index.size() + wide_shuffle_index.size());
    }
};

/// Reads samples of S + 1 consecutive tokens. Every index entry is checked before it is followed.
class GptGather {
public:
    /// @param pad_id  fills a sample that the data cannot (only the last, without drop_last)
    GptGather(std::shared_ptr<const TokenSource> source,
              GptIndexView indices,
              std::int64_t sequence_length,
              std::int64_t pad_id);

    std::int64_t num_samples() const { return indices_.num_samples(); }
    std::int64_t sequence_length() const { return sequence_length_; }

    /// For every k: row rows[k] of tokens and labels gets the first and the last S of the S + 1
    /// tokens of sample samples[k].
    /// @param[out] tokens, labels  [*, S]
    /// Throws Fault for a sample that does not exist, an inconsistent index, or an id that is not
    /// in [0, vocab_size).
    void gather(std::span<const std::int64_t> samples,
                std::span<const std::int64_t> rows,
                std::int64_t vocab_size,
                std::int64_t* tokens,
                std::int64_t* labels) const;

private:
    struct Place {
        std::int64_t first_position, first_offset;  // in the document index, in the document
        std::int64_t last_position, last_offset;    // of the token that the next sample begins with
    };

    void fill_row(std::int64_t sample,
                  const Place& place,
                  std::int64_t vocab_size,
                  std::int64_t* tokens,
                  std::int64_t* labels) const;
    std::int64_t shuffled(std::int64_t sample) const;
    [[noreturn]] void fault_index(std::int64_t sample, const char* what, std::int64_t value) const;

    std::shared_ptr<const TokenSource> source_;
    GptIndexView indices_;
    std::int64_t sequence_length_;
    std::int64_t pad_id_;
};

/// What follows from the tokens of a batch.
struct BatchRules {
    std::int64_t eod = -1;            ///< end-of-document id; -1 matches nothing
    std::int64_t pad = -1;            ///< padding id: no loss on it, and id 0 instead of it
    bool mask_eod_loss = false;       ///< no loss where the input is eod
    bool reset_position_ids = false;  ///< positions start at 0 after each eod
    bool cut_at_eod = false;          ///< segment boundaries after each eod
};

/// Fills loss mask and position ids of tokens and labels [b, S], and replaces padding by id 0.
/// @param[out] loss_mask     [b, S]
/// @param[out] position_ids  [b, S]
/// @return with cut_at_eod: starts of the segments in the b * S tokens, and lastly b * S; every
///         row starts one. Otherwise empty.
std::vector<std::int32_t> finish_batch(std::int64_t b,
                                       std::int64_t sequence_length,
                                       const BatchRules& rules,
                                       std::int64_t* tokens,
                                       std::int64_t* labels,
                                       float* loss_mask,
                                       std::int64_t* position_ids);

}  // namespace megacore::data
