/// Which tokens a masked language model has to guess: whole words and runs of words (n-grams).
/// Number for number the masking of Megatron-LM, for the same state of the random numbers.
/// Sources: Devlin et al., "BERT" (2019), appendix A.1; Joshi et al., "SpanBERT" (2020), section
/// 3.1 (geometric lengths); Raffel et al., T5 (2020), section 3.1.4 (spans).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "data/random_state.h"

namespace megacore::data {

struct MaskingRules {
    double probability = 0.15;  ///< share of the tokens
    int max_ngram = 1;          ///< words of a run, at most
    /// Cumulative probabilities of runs of 1, 2, ... words; empty: geometric with p = 0.2.
    std::vector<double> ngram_cdf;
    /// 80 % of the masked tokens become the mask token, 10 % a random one, 10 % stay; else all
    /// become the mask token.
    bool keep_some = true;
    std::int64_t cls = 0, sep = 0, mask = 0;  ///< ids; the first two are never masked
    std::int64_t vocab_size = 0;              ///< random tokens are smaller
    /// [vocab_size]: 1 for a token that continues the word before it.
    std::vector<std::uint8_t> continues_word;
    /// Masking ends before there are more spans, or more spans and masked tokens together.
    std::int64_t max_spans = std::numeric_limits<std::int64_t>::max();
    std::int64_t max_masked_and_spans = std::numeric_limits<std::int64_t>::max();
};

/// A masked token.
struct MaskedToken {
    std::int64_t position;
    std::int64_t original;
};

/// A masked run: tokens [first, last) of `Masking::tokens`.
struct MaskedSpan {
    std::size_t first;
    std::size_t last;
};

/// The result for one text, and memory that is used again for the next one.
struct Masking {
    std::vector<MaskedToken> tokens;  ///< span by span, in the order of their positions
    std::vector<MaskedSpan> spans;    ///< in the order of their first positions

    std::vector<std::int64_t> positions;  // of tokens that may be masked
    std::vector<std::size_t> words;       // where each word starts in `positions`; lastly the end
    std::vector<std::uint32_t> order;     // of words as starts of runs
    std::vector<std::uint8_t> is_masked;  // of every position
    std::vector<MaskedToken> chosen;      // in the order in which they were chosen
    std::vector<MaskedSpan> chosen_spans;
};

/// Masks a text in place.
/// @param target  the length that the text was meant to have; limits the share of masked tokens
void mask_tokens(const MaskingRules& rules,
                 std::int64_t target,
                 RandomState& random,
                 std::span<std::int64_t> tokens,
                 Masking& out);

}  // namespace megacore::data
