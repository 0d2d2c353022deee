#include "data/sentence_mapping.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

#include "data/fault.h"
#include "data/huge_buffer.h"
#include "data/mersenne64.h"
#include "data/random_state.h"

namespace megacore::data {
namespace {

// Sentences that are looked at together, by vector instructions and without a branch.
constexpr std::int64_t kBlock = 32;
// Sums are of 16 bits if the differences that matter fit: a target, and a block of sentences.
constexpr std::int64_t kLongestNarrow = UINT16_MAX - kBlock * kLongestSentence;
constexpr std::int64_t kSentencesPerTick = 1 << 20;
constexpr std::int64_t kRowsPerTick = 1 << 16;

/// Remainders by a divisor that is fixed, without a division.
/// Source: Lemire, Kaser and Kurz, "Faster remainder by direct computation" (2019).
class FastRemainder {
public:
    /// @param divisor  at least 2
    explicit FastRemainder(std::uint32_t divisor)
        : divisor_(divisor), inverse_(~std::uint64_t{0} / divisor + 1) {}

    std::uint32_t operator()(std::uint32_t value) const {
        const std::uint64_t fraction = inverse_ * value;
        return static_cast<std::uint32_t>((static_cast<unsigned __int128>(fraction) * divisor_) >>
                                          64);
    }
    bool divides(std::uint32_t value) const { return inverse_ * value <= inverse_ - 1; }

private:
    std::uint32_t divisor_;
    std::uint64_t inverse_;
};

/// Target lengths of samples, drawn from a 32-bit Mersenne Twister some time ahead.
class Targets {
public:
    Targets(std::uint32_t seed, double short_probability, std::int64_t max_length)
        : random_(seed),
          ratio_(short_probability > 0.0
                     ? static_cast<std::uint32_t>(std::lround(1.0 / short_probability))
                     : 0),
          max_length_(static_cast<std::uint32_t>(max_length)) {}

    std::int64_t next(std::int64_t) {
        if (position_ >= kAhead) [[unlikely]]
            refill();
        return drawn_[position_++];
    }
    /// Draws a target that nobody wants, if so.
    void skip(bool one) { position_ += one; }
    void restart() {}  // the stream runs through all epochs

private:
    static constexpr std::size_t kAhead = 4096;

    void refill() {
        const std::size_t skipped = position_ - kAhead;  // of the ones to be drawn
        draw();
        position_ = skipped;
    }

    void draw() {
        if (ratio_ == 0) {
            std::fill(std::begin(drawn_), std::end(drawn_), max_length_);
            return;
        }
        for (std::uint32_t& target : drawn_) target = random_.next32();
        // Copies, so that the compiler knows that they stay as they are.
        const FastRemainder is_short = is_short_, length = length_;
        const std::uint32_t max_length = max_length_;
        const bool all_short = ratio_ == 1, has_choice = max_length > 2;
        for (std::uint32_t& target : drawn_) {
            // Computed in any case: whether it is wanted is a coin toss.
            const std::uint32_t short_length = 2 + (has_choice ? length(target) : 0);
            const std::uint32_t chosen = 0u - (all_short | is_short.divides(target));
            target = max_length ^ ((max_length ^ short_length) & chosen);
        }
    }

    RandomState random_;
    std::uint32_t ratio_;
    std::uint32_t max_length_;
    FastRemainder is_short_{std::max(ratio_, 2u)};
    FastRemainder length_{std::max(max_length_ - 1, 2u)};
    std::uint32_t drawn_[kAhead];
    std::size_t position_ = kAhead;
};

/// The documents of a split that can be used, and running sums of the lengths of its sentences.
template <class Sum>
struct Split {
    std::int64_t first_sentence;
    HugeBuffer<Sum> sums;              // [sentences + 1 + kBlock]; only differences count
    std::vector<std::uint8_t> usable;  // [documents + 1], the last one a stop
    std::int64_t num_usable = 0;
};

void check(const SentenceLayout& layout, const MappingRequest& request) {
    MEGACORE_CHECK(request.first_document >= 0 && request.first_document <= request.last_document &&
                       request.last_document < layout.boundaries.size(),
                   request.name,
                   ": documents beyond the dataset");
    if (request.max_length < 2 || request.max_length > INT32_MAX) {
        fault(request.name,
              ": expected room for at least 2 tokens in a sample, found ",
              request.max_length,
              "; use a longer sequence");
    }
    if (request.num_samples && *request.num_samples < 1) {
        fault(request.name, ": expected at least 1 sample, found ", *request.num_samples);
    }
    if (request.min_sentences < 1)
        fault(request.name, ": expected at least 1 sentence in a sample");
}

/// Fills the sums, and lists the sentences that are too long.
template <class Sum>
std::vector<std::int64_t> add_up(const UnalignedArray<std::int32_t>& lengths,
                                 std::int64_t first,
                                 std::int64_t last,
                                 const std::function<void()>& tick,
                                 Sum* sums) {
    constexpr std::int64_t kPiece = 512;
    std::vector<std::int64_t> too_long;
    Sum total = 0;
    for (std::int64_t begin = first; begin < last; begin += kPiece) {
        if ((begin - first) % kSentencesPerTick == 0) tick();
        const std::int64_t count = std::min(kPiece, last - begin);
        std::int32_t piece[kPiece];
        std::memcpy(piece, lengths.bytes() + 4 * begin, static_cast<std::size_t>(4 * count));
        std::int32_t longest = 0;
        for (std::int64_t i = 0; i < count; ++i) longest = std::max(longest, piece[i]);
        for (std::int64_t i = 0; longest > kLongestSentence && i < count; ++i) {
            if (piece[i] <= kLongestSentence) continue;
            too_long.push_back(begin + i);
            // The length is not needed: the document is not used, or has one sentence. So a block
            // of sums beyond the end of a document does not wrap around.
            piece[i] = kLongestSentence;
        }
        for (std::int64_t i = 0; i < count; ++i) {
            *sums++ = total;
            total = static_cast<Sum>(total + static_cast<Sum>(piece[i]));
        }
    }
    std::fill(sums, sums + 1 + kBlock, total);
    return too_long;
}

/// @param single_may_be_long  a document of one sentence can be used whatever its length
template <class Sum>
Split<Sum> measure(const SentenceLayout& layout,
                   const MappingRequest& request,
                   bool single_may_be_long,
                   const std::function<void()>& tick) {
    const std::int64_t documents = request.last_document - request.first_document;
    const std::int64_t first = layout.boundaries[request.first_document];
    const std::int64_t last = layout.boundaries[request.last_document];
    Split<Sum> split{first,
                     HugeBuffer<Sum>(static_cast<std::size_t>(last - first + 1 + kBlock)),
                     std::vector<std::uint8_t>(static_cast<std::size_t>(documents + 1), 1)};
    const auto too_long = add_up(layout.lengths, first, last, tick, split.sums.data());
    auto next_long = too_long.begin();
    std::int64_t begin = first;
    for (std::int64_t d = 0; d < documents; ++d) {
        const std::int64_t end = layout.boundaries[request.first_document + d + 1];
        bool is_usable = end - begin >= request.min_sentences;
        if (next_long != too_long.end() && *next_long < end) {
            is_usable = is_usable && single_may_be_long && end - begin == 1;
            while (next_long != too_long.end() && *next_long < end) ++next_long;
        }
        split.usable[static_cast<std::size_t>(d)] = is_usable;
        split.num_usable += is_usable;
        begin = end;
    }
    return split;
}

/// The smallest end in [from, limit] such that sentences [.., end) have the target length, where
/// `base` is the sum before the first of them; more than limit when there is none.
template <class Sum>
inline std::int64_t find_end(
    const Sum* sums, std::int64_t from, std::int64_t limit, Sum base, Sum target) {
    for (std::int64_t end = from; end <= limit; end += kBlock) {
        Sum below = 0;
        for (std::int64_t k = 0; k < kBlock; ++k) {
            below += static_cast<Sum>(static_cast<Sum>(sums[end + k] - base) < target);
        }
        if (below < kBlock) return end + below;
    }
    return limit + 1;
}

/// Walks one epoch and calls emit(document, first, last, target) for every sample. Which sample is
/// the last one of its document is a coin toss, so the step to the next one takes no branch.
/// @param left     a sample is closed only if at least so many sentences follow
/// @param targets  next(document) is asked before every sample, and skip(1) said behind the last
///                 one of a document
template <class Sum, class Lengths, class Emit>
void walk(const SentenceLayout& layout,
          const MappingRequest& request,
          const Split<Sum>& split,
          std::int64_t left,
          const std::function<void()>& tick,
          Lengths& targets,
          Emit&& emit) {
    const Sum* sums = split.sums.data() - split.first_sentence;
    const std::int64_t stop = request.last_document;
    const std::uint8_t* usable = split.usable.data() - request.first_document;
    const auto boundary = [&](std::int64_t d) { return layout.boundaries[std::min(d, stop)]; };
    std::int64_t d = request.first_document;
    while (!usable[d]) ++d;
    std::int64_t begin = boundary(d);
    for (std::int64_t row = 0; d < stop; ++row) {
        if (row % kRowsPerTick == 0) tick();
        const std::int64_t last = boundary(d + 1);
        const std::int64_t wanted = targets.next(d);
        const std::int64_t limit = last - left;
        const std::int64_t found = find_end(sums,
                                            begin + request.min_sentences,
                                            limit,
                                            sums[begin],
                                            static_cast<Sum>(std::max<std::int64_t>(wanted, 0)));
        const std::int64_t end = found > limit ? last : found;
        emit(d, begin, end, wanted);
        const bool is_last = end == last;
        targets.skip(is_last);
        d += is_last;
        begin = end;  // also the first sentence of the next document
        while (!usable[d]) {
            ++d;
            begin = boundary(d);
        }
    }
}

void check_usable(const SentenceLayout& layout,
                  const MappingRequest& request,
                  std::int64_t num_usable) {
    if (num_usable > 0) return;
    const std::int64_t documents = request.last_document - request.first_document;
    const std::int64_t sentences =
        layout.boundaries[request.last_document] - layout.boundaries[request.first_document];
    fault(request.name,
          ": none of the ",
          documents,
          " documents (",
          sentences,
          " sentences) can be used: a document needs at least ",
          request.min_sentences,
          " sentences, none of them longer than ",
          kLongestSentence,
          " tokens; was the dataset made without --split-sentences?");
}

/// Walks epochs until there are enough rows, and shuffles them.
template <class Sum, class Lengths, class Row, class Emit>
void fill(const SentenceLayout& layout,
          const MappingRequest& request,
          bool single_may_be_long,
          std::int64_t left,
          const std::function<void()>& tick,
          RowBuffer<Row>& out,
          Lengths& targets,
          Emit&& emit) {
    const auto split = measure<Sum>(layout, request, single_may_be_long, tick);
    check_usable(layout, request, split.num_usable);
    const std::int64_t wanted = request.num_samples.value_or(1);
    for (bool is_first = true; is_first || out.size() < wanted; is_first = false) {
        targets.restart();
        walk(layout, request, split, left, tick, targets, emit);
        // All epochs have about as many rows as the first one, and the last is a whole one.
        if (is_first && out.size() < wanted) {
            out.expect(1.01 * (static_cast<double>(wanted) + static_cast<double>(out.size())));
        }
    }
    Mersenne64 random(std::uint64_t{request.seed} + 1);
    shuffle_rows(out.rows(), random, tick);
}

template <class... Rest>
void fill_narrow_or_wide(const SentenceLayout& layout,
                         const MappingRequest& request,
                         Rest&&... rest) {
    if (request.max_length <= kLongestNarrow) {
        fill<std::uint16_t>(layout, request, rest...);
    } else {
        fill<std::uint32_t>(layout, request, rest...);
    }
}

/// Room that the titles of documents leave, and numbers of blocks.
struct BlockTargets {
    const UnalignedArray<std::int32_t>& title_lengths;
    std::int64_t max_length;
    std::int64_t block = 0;

    std::int64_t next(std::int64_t document) const { return max_length - title_lengths[document]; }
    void skip(bool) const {}
    void restart() { block = 0; }
};

}  // namespace

template <class Index>
void map_spans(const SentenceLayout& layout,
               const MappingRequest& request,
               double short_probability,
               const MappingTick& tick,
               RowBuffer<SpanRow<Index>>& out) {
    check(layout, request);
    MEGACORE_CHECK(short_probability >= 0.0 && short_probability <= 1.0,
                   request.name,
                   ": a probability from 0 to 1");
    const std::function<void()> report = [&] { tick(out.size()); };
    Targets targets(request.seed, short_probability, request.max_length);
    fill_narrow_or_wide(
        layout,
        request,
        true,
        2,
        report,
        out,
        targets,
        [&](std::int64_t, std::int64_t first, std::int64_t last, std::int64_t target) {
            out.push(
                {static_cast<Index>(first), static_cast<Index>(last), static_cast<Index>(target)});
        });
}

template <class Index>
void map_blocks(const SentenceLayout& layout,
                const MappingRequest& request,
                const UnalignedArray<std::int32_t>& title_lengths,
                const MappingTick& tick,
                RowBuffer<BlockRow<Index>>& out) {
    check(layout, request);
    if (title_lengths.size() + 1 != layout.boundaries.size()) {
        fault(request.name,
              ": expected one title for each of the ",
              layout.boundaries.size() - 1,
              " documents, found ",
              title_lengths.size());
    }
    const std::function<void()> report = [&] { tick(out.size()); };
    BlockTargets targets{title_lengths, request.max_length};
    fill_narrow_or_wide(
        layout,
        request,
        false,
        request.min_sentences,
        report,
        out,
        targets,
        [&](std::int64_t document, std::int64_t first, std::int64_t last, std::int64_t) {
            out.push({static_cast<Index>(first),
                      static_cast<Index>(last),
                      static_cast<Index>(document),
                      static_cast<Index>(targets.block++)});
        });
}

#define MEGACORE_INSTANTIATE(Index)                                      \
    template void map_spans<Index>(const SentenceLayout&,                \
                                   const MappingRequest&,                \
                                   double,                               \
                                   const MappingTick&,                   \
                                   RowBuffer<SpanRow<Index>>&);          \
    template void map_blocks<Index>(const SentenceLayout&,               \
                                    const MappingRequest&,               \
                                    const UnalignedArray<std::int32_t>&, \
                                    const MappingTick&,                  \
                                    RowBuffer<BlockRow<Index>>&);
MEGACORE_INSTANTIATE(std::uint32_t)
MEGACORE_INSTANTIATE(std::uint64_t)
#undef MEGACORE_INSTANTIATE

}  // namespace megacore::data
