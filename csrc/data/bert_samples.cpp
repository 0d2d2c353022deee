// Source: Devlin et al., "BERT" (2019), section 3.1; Lan et al., "ALBERT" (2020), section 3.1
// (the order of two parts of one text instead of the next sentence).
#include <algorithm>

#include "data/sentence_samples.h"

namespace megacore::data {
namespace {

constexpr std::int64_t kSpecial = 3;  // cls, sep, sep
constexpr std::int64_t kNoLabel = -1;

/// A part of the text, of which tokens fall away at both ends.
struct Part {
    std::size_t first, last;
    std::int64_t size() const { return static_cast<std::int64_t>(last - first); }
};

/// Drops tokens of the longer part (B when they are equal), each from a random end.
void truncate(std::int64_t target, RandomState& random, Part& a, Part& b) {
    while (a.size() + b.size() > target) {
        Part& longer = a.size() > b.size() ? a : b;
        if (random.random_sample() < 0.5) {
            ++longer.first;
        } else {
            --longer.last;
        }
    }
}

}  // namespace

struct BertSamples::Text {
    std::vector<std::int64_t> sentences;  // of the sample, as they stand in the dataset
    std::vector<std::int64_t> tokens;     // cls A sep B sep
    std::size_t first_of_b = 0;           // where types become 1
    std::int64_t target = 0;
    bool is_random = false;
};

BertSamples::BertSamples(SentenceRows rows,
                         SentenceConfig config,
                         MaskingRules rules,
                         bool two_parts)
    : rows_(std::move(rows)), config_(config), rules_(std::move(rules)), two_parts_(two_parts) {}

void BertSamples::assemble(std::int64_t sample,
                           std::int64_t vocab_size,
                           RandomState& random,
                           Text& out) const {
    const auto row = rows_.row(sample);
    const std::int64_t first = row[0], last = row[1];
    out.target = row[2];
    if (out.target < 1 || out.target > config_.sequence_length - kSpecial) {
        rows_.fault_row(sample, "target length", out.target);
    }
    out.sentences.clear();
    std::int64_t pivot = last;
    if (two_parts_) {
        pivot = first + 1;
        if (last - first >= 3) {
            pivot += static_cast<std::int64_t>(
                random.interval(static_cast<std::uint64_t>(last - first - 2)));
        }
    }
    rows_.read(first, pivot, vocab_size, INT64_MAX, out.sentences);
    Part a{0, out.sentences.size()};
    rows_.read(pivot, last, vocab_size, INT64_MAX, out.sentences);
    Part b{a.last, out.sentences.size()};
    out.is_random = two_parts_ && random.random_sample() < 0.5;
    if (out.is_random) std::swap(a, b);
    truncate(out.target, random, a, b);

    out.tokens.clear();
    const auto append = [&](const Part& part) {
        const auto begin = out.sentences.begin();
        out.tokens.insert(out.tokens.end(),
                          begin + static_cast<std::ptrdiff_t>(part.first),
                          begin + static_cast<std::ptrdiff_t>(part.last));
        out.tokens.push_back(config_.sep);
    };
    out.tokens.push_back(config_.cls);
    append(a);
    out.first_of_b = out.tokens.size();
    if (b.size() > 0) append(b);
}

void BertSamples::gather(std::span<const std::int64_t> samples,
                         std::span<const std::int64_t> rows,
                         std::int64_t vocab_size,
                         const BertRows& out) const {
    Text text;
    Masking masking;
    const std::int64_t width = config_.sequence_length;
    for (std::size_t k = 0; k < samples.size(); ++k) {
        RandomState random(config_.seed + static_cast<std::uint32_t>(samples[k]));
        assemble(samples[k], vocab_size, random, text);
        mask_tokens(rules_, text.target, random, text.tokens, masking);

        const std::int64_t row = rows[k], begin = row * width;
        const auto length = static_cast<std::int64_t>(text.tokens.size());
        std::copy(text.tokens.begin(), text.tokens.end(), out.text + begin);
        std::fill(out.text + begin + length, out.text + begin + width, config_.pad);
        std::fill(out.types + begin, out.types + begin + width, 0);
        std::fill(out.types + begin + static_cast<std::int64_t>(text.first_of_b),
                  out.types + begin + length,
                  1);
        std::fill(out.labels + begin, out.labels + begin + width, kNoLabel);
        std::fill(out.loss_mask + begin, out.loss_mask + begin + width, 0.0f);
        for (const MaskedToken& token : masking.tokens) {
            out.labels[begin + token.position] = token.original;
            out.loss_mask[begin + token.position] = 1.0f;
        }
        out.is_random[row] = text.is_random;
        out.lengths[row] = static_cast<std::int32_t>(length);
    }
}

}  // namespace megacore::data
