#include "data/gpt_gather.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "data/fault.h"
#include "data/multiversion.h"

namespace megacore::data {
namespace {

// Samples whose chain of lookups (shuffle, sample, document index, place in the file, tokens) is
// followed side by side, so that their cache misses overlap.
constexpr std::size_t kGroup = 16;
constexpr std::int64_t kHintedDocuments = 8;

/// A copy by vector moves. The library's memcpy takes a string instruction for rows of this size,
/// which is ten times slower for a source that is eight bytes off its destination's alignment.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("no-tree-loop-distribute-patterns")))
#endif
MEGACORE_MULTIVERSION void copy_row(const std::int64_t* source,
                                    std::int64_t count,
                                    std::int64_t* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = source[i];
}

}  // namespace

GptGather::GptGather(std::shared_ptr<const TokenSource> source,
                     GptIndexView indices,
                     std::int64_t sequence_length,
                     std::int64_t pad_id)
    : source_(std::move(source)),
      indices_(indices),
      sequence_length_(sequence_length),
      pad_id_(pad_id) {
    const std::int64_t samples = indices_.num_samples();
    if (sequence_length < 1 || samples < 1 || indices_.document_index.empty() ||
        static_cast<std::int64_t>(indices_.sample_index.size()) != 2 * (samples + 1)) {
        fault(source_->name(),
              ": index files do not belong together: ",
              indices_.document_index.size(),
              " documents, ",
              indices_.sample_index.size() / 2,
              " sample rows, ",
              samples,
              " shuffled samples");
    }
}

void GptGather::fault_index(std::int64_t sample, const char* what, std::int64_t value) const {
    fault(source_->name(),
          ", sample ",
          sample,
          ": ",
          what,
          " ",
          value,
          " of its index files is out of range; delete the cached index files to build them anew");
}

std::int64_t GptGather::shuffled(std::int64_t sample) const {
    if (sample < 0 || sample >= num_samples()) [[unlikely]] {
        fault(source_->name(),
              ": expected a sample number from 0 to ",
              num_samples() - 1,
              ", found ",
              sample);
    }
    const auto i = static_cast<std::size_t>(sample);
    const std::int64_t row = indices_.shuffle_index.empty()
                                 ? indices_.wide_shuffle_index[i]
                                 : static_cast<std::int64_t>(indices_.shuffle_index[i]);
    if (row < 0 || row >= num_samples()) [[unlikely]]
        fault_index(sample, "shuffled number", row);
    return row;
}

void GptGather::gather(std::span<const std::int64_t> samples,
                       std::span<const std::int64_t> rows,
                       std::int64_t vocab_size,
                       std::int64_t* tokens,
                       std::int64_t* labels) const {
    MEGACORE_CHECK(samples.size() == rows.size(), "one row per sample");
    const auto documents = static_cast<std::int64_t>(indices_.document_index.size());
    for (std::size_t begin = 0; begin < samples.size(); begin += kGroup) {
        const std::size_t count = std::min(kGroup, samples.size() - begin);
        const auto group = samples.subspan(begin, count);
        std::array<std::int64_t, kGroup> row;
        std::array<Place, kGroup> places;
        for (const std::int64_t sample : group) {
            if (sample < 0 || sample >= num_samples()) continue;  // reported by shuffled()
            const auto i = static_cast<std::size_t>(sample);
            if (indices_.shuffle_index.empty()) {
                __builtin_prefetch(&indices_.wide_shuffle_index[i]);
            } else {
                __builtin_prefetch(&indices_.shuffle_index[i]);
            }
        }
        for (std::size_t k = 0; k < count; ++k) {
            row[k] = shuffled(group[k]);
            __builtin_prefetch(&indices_.sample_index[2 * static_cast<std::size_t>(row[k])]);
        }
        for (std::size_t k = 0; k < count; ++k) {
            std::memcpy(&places[k],
                        &indices_.sample_index[2 * static_cast<std::size_t>(row[k])],
                        sizeof(Place));
            const Place& place = places[k];
            if (place.first_position < 0 || place.last_position < place.first_position ||
                place.last_position >= documents) [[unlikely]] {
                fault_index(group[k], "document position", place.last_position);
            }
            __builtin_prefetch(
                &indices_.document_index[static_cast<std::size_t>(place.first_position)]);
        }
        // Documents after the first one begin elsewhere in the file. Beyond a few of them the
        // hints would push each other out of the cache.
        const auto each_document = [&](const Place& place, auto&& hint) {
            const std::int64_t end =
                std::min(place.last_position, place.first_position + kHintedDocuments - 1);
            for (std::int64_t p = place.first_position; p <= end; ++p) {
                hint(indices_.document_index[static_cast<std::size_t>(p)],
                     p == place.first_position ? place.first_offset : 0);
            }
        };
        for (std::size_t k = 0; k < count; ++k) {
            each_document(places[k], [&](std::int64_t document, std::int64_t) {
                source_->prefetch_place(document);
            });
        }
        for (std::size_t k = 0; k < count; ++k) {
            each_document(places[k], [&](std::int64_t document, std::int64_t offset) {
                source_->prefetch_items(document, offset);
            });
        }
        for (std::size_t k = 0; k < count; ++k) {
            const std::int64_t out = rows[begin + k] * sequence_length_;
            fill_row(group[k], places[k], vocab_size, tokens + out, labels + out);
        }
    }
}

void GptGather::fill_row(std::int64_t sample,
                         const Place& place,
                         std::int64_t vocab_size,
                         std::int64_t* tokens,
                         std::int64_t* labels) const {
    const std::int64_t wanted = sequence_length_ + 1;
    std::int64_t done = 0;
    std::int64_t last_token = pad_id_;
    for (std::int64_t p = place.first_position; p <= place.last_position; ++p) {
        const std::int64_t document = indices_.document_index[static_cast<std::size_t>(p)];
        if (document < 0 || document >= source_->num_sequences()) [[unlikely]] {
            fault_index(sample, "document", document);
        }
        const std::int64_t begin = p == place.first_position ? place.first_offset : 0;
        const std::int64_t end =
            p == place.last_position ? place.last_offset + 1 : source_->length(document);
        const std::int64_t count = end - begin;
        if (count < 0 || count > wanted - done) [[unlikely]] {
            fault_index(sample, "token count", done + count);
        }
        // Token S exists only as a label.
        const std::int64_t as_tokens = std::min(count, sequence_length_ - done);
        source_->read(
            document, begin, vocab_size, {tokens + done, static_cast<std::size_t>(as_tokens)});
        if (as_tokens < count) {
            source_->read(document, begin + as_tokens, vocab_size, {&last_token, 1});
        }
        done += count;
    }
    if (done < sequence_length_) std::fill(tokens + done, tokens + sequence_length_, pad_id_);
    copy_row(tokens + 1, sequence_length_ - 1, labels);
    labels[sequence_length_ - 1] = last_token;
}

namespace {

/// Mask, positions and segment starts of one row, which begins at token `first_token` of the batch.
void apply_eod(std::int64_t first_token,
               std::int64_t sequence_length,
               const BatchRules& rules,
               const std::int64_t* row,
               float* mask,
               std::int64_t* position,
               std::vector<std::int32_t>& starts) {
    std::int64_t first = 0;  // where positions count from
    for (std::int64_t i = 0; i < sequence_length; ++i) {
        position[i] = i - first;
        if (row[i] != rules.eod) continue;
        if (rules.mask_eod_loss) mask[i] = 0.0f;
        if (rules.reset_position_ids) first = i + 1;
        if (rules.cut_at_eod && i + 1 < sequence_length) {
            starts.push_back(static_cast<std::int32_t>(first_token + i + 1));
        }
    }
}

}  // namespace

std::vector<std::int32_t> finish_batch(std::int64_t b,
                                       std::int64_t sequence_length,
                                       const BatchRules& rules,
                                       std::int64_t* tokens,
                                       std::int64_t* labels,
                                       float* loss_mask,
                                       std::int64_t* position_ids) {
    std::vector<std::int32_t> starts;
    const bool look_for_eod = rules.mask_eod_loss || rules.reset_position_ids || rules.cut_at_eod;
    if (rules.cut_at_eod && b * sequence_length > INT32_MAX) {
        fault("a batch of ", b, " x ", sequence_length, " tokens is too large to be cut");
    }
    for (std::int64_t r = 0; r < b; ++r) {
        std::int64_t* row = tokens + r * sequence_length;
        std::int64_t* label = labels + r * sequence_length;
        float* mask = loss_mask + r * sequence_length;
        std::int64_t* position = position_ids + r * sequence_length;
        std::fill(mask, mask + sequence_length, 1.0f);
        if (rules.cut_at_eod) starts.push_back(static_cast<std::int32_t>(r * sequence_length));
        if (look_for_eod) {
            apply_eod(r * sequence_length, sequence_length, rules, row, mask, position, starts);
        } else {
            std::iota(position, position + sequence_length, std::int64_t{0});
        }
        // Without a padding token only the end of a row can be padding (id -1).
        if (rules.pad >= 0 || label[sequence_length - 1] == rules.pad) {
            for (std::int64_t i = 0; i < sequence_length; ++i) {
                if (label[i] == rules.pad) {
                    mask[i] = 0.0f;
                    label[i] = 0;
                }
                if (row[i] == rules.pad) row[i] = 0;
            }
        }
    }
    if (rules.cut_at_eod) starts.push_back(static_cast<std::int32_t>(b * sequence_length));
    return starts;
}

}  // namespace megacore::data
