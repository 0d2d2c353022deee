#include "data/masking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace megacore::data {
namespace {

constexpr double kMaskShare = 0.8;
constexpr double kRandomShare = 0.5;  // of the others
constexpr double kGeometric = 0.2;

/// Like RandomState.geometric(p) for p < 1/3: by inversion.
int geometric(RandomState& random, int limit) {
    const double draw = std::ceil(std::log1p(-random.random_sample()) / std::log(1.0 - kGeometric));
    return std::max(1, static_cast<int>(std::min(draw, static_cast<double>(limit))));
}

/// Words of a run, from 1.
int draw_length(const MaskingRules& rules, RandomState& random) {
    if (rules.ngram_cdf.empty()) return geometric(random, rules.max_ngram);
    const double draw = random.random_sample();
    const auto found = std::upper_bound(rules.ngram_cdf.begin(), rules.ngram_cdf.end(), draw);
    return std::min(static_cast<int>(found - rules.ngram_cdf.begin()) + 1, rules.max_ngram);
}

std::int64_t replacement(const MaskingRules& rules, RandomState& random, std::int64_t token) {
    if (!rules.keep_some || random.random_sample() < kMaskShare) return rules.mask;
    if (random.random_sample() < kRandomShare) return token;
    return static_cast<std::int64_t>(
        random.interval(static_cast<std::uint64_t>(rules.vocab_size - 1)));
}

void find_words(const MaskingRules& rules, std::span<const std::int64_t> tokens, Masking& out) {
    out.positions.clear();
    out.words.clear();
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const std::int64_t token = tokens[i];
        if (token == rules.cls || token == rules.sep) continue;
        const auto id = static_cast<std::size_t>(token);
        const bool continues = id < rules.continues_word.size() && rules.continues_word[id] != 0;
        if (!continues || out.words.empty()) out.words.push_back(out.positions.size());
        out.positions.push_back(static_cast<std::int64_t>(i));
    }
}

void choose(const MaskingRules& rules,
            double budget,
            RandomState& random,
            std::span<std::int64_t> tokens,
            Masking& out) {
    const std::size_t num_words = out.order.size();
    for (const std::uint32_t word : out.order) {
        const auto masked = static_cast<std::int64_t>(out.chosen.size());
        if (static_cast<double>(masked) >= budget) return;
        const auto first = out.words[word];
        const auto end_of = [&](int length) {
            return out.words[std::min(word + static_cast<std::size_t>(length), num_words)];
        };
        int length = draw_length(rules, random);
        const auto fits = [&] {
            return static_cast<double>(masked +
                                       static_cast<std::int64_t>(end_of(length) - first)) <= budget;
        };
        while (length > 1 && !fits()) --length;
        if (!fits()) continue;
        const std::size_t last = end_of(length);
        const auto is_masked = [&](std::int64_t i) {
            return out.is_masked[static_cast<std::size_t>(i)] != 0;
        };
        const auto at = [&](std::size_t i) {
            return out.positions.begin() + static_cast<std::ptrdiff_t>(i);
        };
        if (std::any_of(at(first), at(last), is_masked)) continue;
        const auto spans = static_cast<std::int64_t>(out.chosen_spans.size()) + 1;
        const auto together = masked + static_cast<std::int64_t>(last - first) + spans;
        if (spans > rules.max_spans || together > rules.max_masked_and_spans) return;
        out.chosen_spans.push_back({out.chosen.size(), out.chosen.size() + (last - first)});
        for (std::size_t i = first; i < last; ++i) {
            const auto position = static_cast<std::size_t>(out.positions[i]);
            out.is_masked[position] = 1;
            out.chosen.push_back({out.positions[i], tokens[position]});
            tokens[position] = replacement(rules, random, tokens[position]);
        }
    }
}

}  // namespace

void mask_tokens(const MaskingRules& rules,
                 std::int64_t target,
                 RandomState& random,
                 std::span<std::int64_t> tokens,
                 Masking& out) {
    find_words(rules, tokens, out);
    out.order.resize(out.words.size());
    out.words.push_back(out.positions.size());
    std::iota(out.order.begin(), out.order.end(), 0u);
    random.shuffle(std::span<std::uint32_t>(out.order));
    out.is_masked.assign(tokens.size(), 0);
    out.chosen.clear();
    out.chosen_spans.clear();
    // nearbyint rounds halves to even, as Python's round() does.
    const double share = std::nearbyint(static_cast<double>(tokens.size()) * rules.probability);
    const double budget =
        std::min(rules.probability * static_cast<double>(target), std::max(1.0, share));
    choose(rules, budget, random, tokens, out);

    std::sort(out.chosen_spans.begin(),
              out.chosen_spans.end(),
              [&](const MaskedSpan& a, const MaskedSpan& b) {
                  return out.chosen[a.first].position < out.chosen[b.first].position;
              });
    out.tokens.clear();
    out.spans.clear();
    for (const MaskedSpan& span : out.chosen_spans) {
        const std::size_t first = out.tokens.size();
        out.tokens.insert(out.tokens.end(),
                          out.chosen.begin() + static_cast<std::ptrdiff_t>(span.first),
                          out.chosen.begin() + static_cast<std::ptrdiff_t>(span.last));
        out.spans.push_back({first, out.tokens.size()});
    }
}

}  // namespace megacore::data
