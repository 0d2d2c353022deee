/// Batches for BERT, T5 and the inverse cloze task, out of datasets of sentences.
///
/// Sample i has random numbers of its own, RandomState((seed + i) mod 2^32), so that it does not
/// depend on which samples were read before it. Number for number those of Megatron-LM.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/masking.h"
#include "data/token_source.h"

namespace megacore::data {

/// The rows of a sample map (sentence_mapping.h), wherever they live; one of the spans is empty.
struct RowView {
    std::span<const std::uint32_t> narrow;
    std::span<const std::uint64_t> wide;
    std::int64_t columns = 3;

    std::int64_t size() const {
        return static_cast<std::int64_t>(narrow.size() + wide.size()) / columns;
    }
    /// The first `columns` of the result are the row.
    std::array<std::int64_t, 4> operator[](std::int64_t row) const;
};

/// What all kinds of samples need: where sentences are, and the ids around them.
struct SentenceConfig {
    std::uint32_t seed = 0;
    std::int64_t sequence_length = 0;  ///< S, of the encoder
    std::int64_t cls = 0, sep = 0, pad = 0;
};

/// Reads the sentences of samples. Every entry of the map is checked before it is followed.
class SentenceRows {
public:
    SentenceRows(std::shared_ptr<const TokenSource> source, RowView rows);

    std::int64_t size() const { return rows_.size(); }
    const TokenSource& source() const { return *source_; }
    /// Throws Fault for a sample that does not exist or sentences that the dataset does not have.
    std::array<std::int64_t, 4> row(std::int64_t sample) const;
    /// Appends the ids of sentences [first, last), up to `limit` ids in `out` altogether.
    void read(std::int64_t first,
              std::int64_t last,
              std::int64_t vocab_size,
              std::int64_t limit,
              std::vector<std::int64_t>& out) const;
    [[noreturn]] void fault_row(std::int64_t sample, const char* what, std::int64_t value) const;

private:
    std::shared_ptr<const TokenSource> source_;
    RowView rows_;
};

/// Rows of a batch for BERT, S wide but for the last two, which have one number per row.
struct BertRows {
    std::int64_t *text, *types, *labels;
    float* loss_mask;
    std::int64_t* is_random;
    std::int32_t* lengths;
};

/// cls A sep B sep with masked tokens; A and B are swapped in half of the samples.
class BertSamples {
public:
    /// @param two_parts  false: only A
    BertSamples(SentenceRows rows, SentenceConfig config, MaskingRules rules, bool two_parts);

    std::int64_t width() const { return config_.sequence_length; }
    /// For every k: row rows[k] of the batch gets sample samples[k].
    void gather(std::span<const std::int64_t> samples,
                std::span<const std::int64_t> rows,
                std::int64_t vocab_size,
                const BertRows& out) const;

private:
    struct Text;
    void assemble(std::int64_t sample,
                  std::int64_t vocab_size,
                  RandomState& random,
                  Text& out) const;

    SentenceRows rows_;
    SentenceConfig config_;
    MaskingRules rules_;
    bool two_parts_;
};

/// Rows of a batch for T5: the first is S wide, the next three D, the last two have one number.
struct T5Rows {
    std::int64_t *text_enc, *text_dec, *labels;
    float* loss_mask;
    std::int32_t *enc_lengths, *dec_lengths;
};

/// A text whose spans are replaced by sentinels, and the spans behind their sentinels.
class T5Samples {
public:
    struct Ids {
        std::int64_t bos = 0, eos = 0;
        std::vector<std::int64_t> sentinels;
    };

    /// @param decoder_length  D; with the number of sentinels it ends the masking of a text early
    T5Samples(SentenceRows rows,
              SentenceConfig config,
              MaskingRules rules,
              Ids ids,
              std::int64_t decoder_length);

    std::int64_t width() const { return config_.sequence_length; }
    std::int64_t decoder_width() const { return decoder_length_; }
    void gather(std::span<const std::int64_t> samples,
                std::span<const std::int64_t> rows,
                std::int64_t vocab_size,
                const T5Rows& out) const;

private:
    SentenceRows rows_;
    SentenceConfig config_;
    MaskingRules rules_;
    Ids ids_;
    std::int64_t decoder_length_;
};

/// Rows of a batch for the inverse cloze task: S wide, but for the lengths, and 4 wide.
struct IctRows {
    std::int64_t* query;
    std::int32_t* query_lengths;
    std::int64_t* context;
    std::int32_t* context_lengths;
    std::int64_t* block_data;
};

/// cls query sep, and cls title sep block sep, where the query is a sentence of the block.
class IctSamples {
public:
    /// @param titles              one sequence per document; null: without titles
    /// @param query_in_block      probability that the query stays in the block
    IctSamples(SentenceRows rows,
               SentenceConfig config,
               std::shared_ptr<const TokenSource> titles,
               double query_in_block);

    std::int64_t width() const { return config_.sequence_length; }
    void gather(std::span<const std::int64_t> samples,
                std::span<const std::int64_t> rows,
                std::int64_t vocab_size,
                const IctRows& out) const;
    /// The whole blocks of samples, without a query: for an index of blocks.
    void gather_blocks(std::span<const std::int64_t> samples,
                       std::int64_t vocab_size,
                       const IctRows& out) const;

private:
    void write_context(std::int64_t document,
                       std::span<const std::int64_t> block,
                       std::int64_t vocab_size,
                       std::int64_t row,
                       const IctRows& out) const;

    SentenceRows rows_;
    SentenceConfig config_;
    std::shared_ptr<const TokenSource> titles_;
    double query_in_block_;
};

}  // namespace megacore::data
