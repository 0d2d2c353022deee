/// Which keys a query of attention.h sees, and the reverse; and the numbers of its dropout.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "kernels/attention.h"
#include "kernels/dropout_add.h"

namespace megacore {

struct IndexRange {
    std::int64_t begin;
    std::int64_t end;  ///< Not below begin.

    static MEGACORE_HOST_DEVICE IndexRange of(std::int64_t begin, std::int64_t end) {
        return {begin, end > begin ? end : begin};
    }
};

struct AttentionRange {
    const std::int64_t* documents;    // or null
    const std::int64_t* key_lengths;  // or null
    std::int64_t num_documents;
    std::int64_t queries;
    std::int64_t keys;
    std::int64_t window;  // 0 for none
    bool causal;

    static AttentionRange of(const TensorView& q, const TensorView& k, const AttentionRule& rule) {
        return {.documents = rule.documents.as<const std::int64_t>(),
                .key_lengths = rule.key_lengths.as<const std::int64_t>(),
                .num_documents = rule.documents.present() ? rule.documents.sizes[0] - 1 : 0,
                .queries = q.sizes[1],
                .keys = k.sizes[1],
                .window = rule.window,
                .causal = rule.causal};
    }

    /// Keys of sequence b, at least 0 and at most `keys`.
    MEGACORE_HOST_DEVICE std::int64_t length(std::int64_t b) const {
        if (key_lengths == nullptr) return keys;
        const std::int64_t found = key_lengths[b];
        return found < 0 ? 0 : found > keys ? keys : found;
    }

    /// The document of a token: the last one that does not begin behind it.
    MEGACORE_HOST_DEVICE IndexRange document(std::int64_t token) const {
        std::int64_t low = 0;
        std::int64_t high = num_documents;
        while (high - low > 1) {
            const std::int64_t middle = (low + high) / 2;
            if (documents[middle] <= token) {
                low = middle;
            } else {
                high = middle;
            }
        }
        // Cut to the tokens there are, whatever the caller's numbers.
        const std::int64_t begin = documents[low] < 0 ? 0 : documents[low];
        const std::int64_t end = documents[low + 1] > keys ? keys : documents[low + 1];
        return IndexRange::of(begin, end);
    }

    /// Keys that query i of sequence b sees; both ends grow with i.
    MEGACORE_HOST_DEVICE IndexRange keys_of(std::int64_t b, std::int64_t i) const {
        std::int64_t begin = 0;
        std::int64_t end = length(b);
        const std::int64_t last = i + end - queries;
        if (documents != nullptr) {
            const IndexRange own = document(i);
            begin = own.begin;
            end = own.end;
        }
        if (causal) {
            if (last + 1 < end) end = last + 1;
            if (window > 0 && last + 1 - window > begin) begin = last + 1 - window;
        }
        return IndexRange::of(begin < 0 ? 0 : begin, end);
    }

    /// Queries that see key j of sequence b; both ends grow with j.
    MEGACORE_HOST_DEVICE IndexRange queries_of(std::int64_t b, std::int64_t j) const {
        std::int64_t begin = 0;
        std::int64_t end = queries;
        const std::int64_t count = length(b);
        if (j >= count) return {queries, queries};
        const std::int64_t first = j - (count - queries);
        if (documents != nullptr) {
            const IndexRange own = document(j);
            begin = own.begin;
            end = own.end;
        }
        if (causal) {
            if (first > begin) begin = first;
            if (window > 0 && first + window < end) end = first + window;
        }
        return IndexRange::of(begin, end);
    }
};

}  // namespace megacore
