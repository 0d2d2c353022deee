// Source: Lee et al., "Latent Retrieval for Weakly Supervised Open Domain Question Answering"
// (2019), section 4.
#include <algorithm>

#include "data/fault.h"
#include "data/sentence_samples.h"

namespace megacore::data {
namespace {

/// Writes ids into a row of `width`, and what is left over is padding.
class RowWriter {
public:
    RowWriter(std::int64_t* row, std::int64_t width) : row_(row), width_(width) {}

    std::int64_t size() const { return size_; }
    void push(std::int64_t id) { row_[size_++] = id; }
    /// Writes ids as long as there is room for `spare` more behind them.
    void append(std::span<const std::int64_t> ids, std::int64_t spare) {
        const std::int64_t room = std::max<std::int64_t>(width_ - size_ - spare, 0);
        const auto count = std::min(static_cast<std::int64_t>(ids.size()), room);
        std::copy_n(ids.begin(), count, row_ + size_);
        size_ += count;
    }
    void pad(std::int64_t id) { std::fill(row_ + size_, row_ + width_, id); }

private:
    std::int64_t* row_;
    std::int64_t width_;
    std::int64_t size_ = 0;
};

}  // namespace

IctSamples::IctSamples(SentenceRows rows,
                       SentenceConfig config,
                       std::shared_ptr<const TokenSource> titles,
                       double query_in_block)
    : rows_(std::move(rows)),
      config_(config),
      titles_(std::move(titles)),
      query_in_block_(query_in_block) {
    MEGACORE_CHECK(config_.sequence_length >= 4, "room for the special tokens and one more");
}

void IctSamples::write_context(std::int64_t document,
                               std::span<const std::int64_t> block,
                               std::int64_t vocab_size,
                               std::int64_t row,
                               const IctRows& out) const {
    const std::int64_t width = config_.sequence_length;
    RowWriter context(out.context + row * width, width);
    context.push(config_.cls);
    if (titles_) {
        std::vector<std::int64_t> title(static_cast<std::size_t>(titles_->length(document)));
        titles_->read(document, 0, vocab_size, title);
        context.append(title, 2);
        context.push(config_.sep);
    }
    context.append(block, 1);
    context.push(config_.sep);
    context.pad(config_.pad);
    out.context_lengths[row] = static_cast<std::int32_t>(context.size());
}

void IctSamples::gather(std::span<const std::int64_t> samples,
                        std::span<const std::int64_t> rows,
                        std::int64_t vocab_size,
                        const IctRows& out) const {
    const std::int64_t width = config_.sequence_length;
    std::vector<std::int64_t> block, query;
    for (std::size_t k = 0; k < samples.size(); ++k) {
        const auto sample = rows_.row(samples[k]);
        if (titles_ && (sample[2] < 0 || sample[2] >= titles_->num_sequences())) {
            rows_.fault_row(samples[k], "document", sample[2]);
        }
        const std::int64_t row = rows[k], first = sample[0], last = sample[1];
        RandomState random(config_.seed + static_cast<std::uint32_t>(samples[k]));
        const std::int64_t chosen = first + static_cast<std::int64_t>(random.interval(
                                                static_cast<std::uint64_t>(last - first - 1)));
        const bool stays = random.random_sample() < query_in_block_;
        query.clear();
        rows_.read(chosen, chosen + 1, vocab_size, INT64_MAX, query);
        block.clear();
        rows_.read(first, stays ? last : chosen, vocab_size, width, block);
        if (!stays) rows_.read(chosen + 1, last, vocab_size, width, block);

        RowWriter words(out.query + row * width, width);
        words.push(config_.cls);
        words.append(query, 1);
        words.push(config_.sep);
        words.pad(config_.pad);
        out.query_lengths[row] = static_cast<std::int32_t>(words.size());
        write_context(sample[2], block, vocab_size, row, out);
        std::copy(sample.begin(), sample.end(), out.block_data + 4 * row);
    }
}

void IctSamples::gather_blocks(std::span<const std::int64_t> samples,
                               std::int64_t vocab_size,
                               const IctRows& out) const {
    std::vector<std::int64_t> block;
    for (std::size_t k = 0; k < samples.size(); ++k) {
        const auto sample = rows_.row(samples[k]);
        if (titles_ && (sample[2] < 0 || sample[2] >= titles_->num_sequences())) {
            rows_.fault_row(samples[k], "document", sample[2]);
        }
        block.clear();
        rows_.read(sample[0], sample[1], vocab_size, config_.sequence_length, block);
        const auto row = static_cast<std::int64_t>(k);
        write_context(sample[2], block, vocab_size, row, out);
        std::copy(sample.begin(), sample.end(), out.block_data + 4 * row);
    }
}

}  // namespace megacore::data
