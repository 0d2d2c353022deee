// Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
// Transformer" (2020), section 3.1.4 and figure 2.
#include <algorithm>

#include "data/sentence_samples.h"

namespace megacore::data {
namespace {

constexpr std::int64_t kNoLabel = -1;

/// Copies `ids` to a row of `width` and fills the rest.
void write_row(const std::vector<std::int64_t>& ids,
               std::int64_t width,
               std::int64_t rest,
               std::int64_t* row) {
    std::fill(std::copy(ids.begin(), ids.end(), row), row + width, rest);
}

}  // namespace

T5Samples::T5Samples(SentenceRows rows,
                     SentenceConfig config,
                     MaskingRules rules,
                     Ids ids,
                     std::int64_t decoder_length)
    : rows_(std::move(rows)),
      config_(config),
      rules_(std::move(rules)),
      ids_(std::move(ids)),
      decoder_length_(decoder_length) {
    // Beside the spans, the decoder's input holds bos and its labels eos.
    rules_.max_masked_and_spans = decoder_length - 1;
    rules_.max_spans = static_cast<std::int64_t>(ids_.sentinels.size());
}

void T5Samples::gather(std::span<const std::int64_t> samples,
                       std::span<const std::int64_t> rows,
                       std::int64_t vocab_size,
                       const T5Rows& out) const {
    Masking masking;
    std::vector<std::int64_t> tokens, encoder, decoder, labels;
    for (std::size_t k = 0; k < samples.size(); ++k) {
        const auto sample = rows_.row(samples[k]);
        const std::int64_t target = sample[2];
        if (target < 1 || target > config_.sequence_length) {
            rows_.fault_row(samples[k], "target length", target);
        }
        tokens.clear();
        rows_.read(sample[0], sample[1], vocab_size, target, tokens);
        RandomState random(config_.seed + static_cast<std::uint32_t>(samples[k]));
        mask_tokens(rules_, target, random, tokens, masking);

        encoder.clear();
        labels.clear();
        decoder.assign(1, ids_.bos);
        auto rest = tokens.begin();
        for (std::size_t s = 0; s < masking.spans.size(); ++s) {
            const MaskedSpan& span = masking.spans[s];
            const auto at = [&](std::size_t i) {
                return tokens.begin() + static_cast<std::ptrdiff_t>(masking.tokens[i].position);
            };
            encoder.insert(encoder.end(), rest, at(span.first));
            encoder.push_back(ids_.sentinels[s]);
            rest = at(span.last - 1) + 1;
            labels.push_back(ids_.sentinels[s]);
            for (std::size_t i = span.first; i < span.last; ++i) {
                labels.push_back(masking.tokens[i].original);
            }
        }
        encoder.insert(encoder.end(), rest, tokens.end());
        if (encoder.empty()) encoder.push_back(ids_.eos);  // sentences without tokens
        decoder.insert(decoder.end(), labels.begin(), labels.end());
        labels.push_back(ids_.eos);

        const std::int64_t row = rows[k];
        const auto length = static_cast<std::int64_t>(decoder.size());
        write_row(encoder,
                  config_.sequence_length,
                  config_.pad,
                  out.text_enc + row * config_.sequence_length);
        write_row(decoder, decoder_length_, config_.pad, out.text_dec + row * decoder_length_);
        write_row(labels, decoder_length_, kNoLabel, out.labels + row * decoder_length_);
        float* mask = out.loss_mask + row * decoder_length_;
        std::fill(mask, mask + length, 1.0f);
        std::fill(mask + length, mask + decoder_length_, 0.0f);
        out.enc_lengths[row] = static_cast<std::int32_t>(encoder.size());
        out.dec_lengths[row] = static_cast<std::int32_t>(length);
    }
}

}  // namespace megacore::data
