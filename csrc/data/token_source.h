/// Where the tokens of a sample come from: an indexed dataset, or numbers made up for tests.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/indexed_reader.h"

namespace megacore::data {

/// Sequences of token ids. Thread-safe.
class TokenSource {
public:
    virtual ~TokenSource() = default;

    /// For messages.
    virtual const std::string& name() const = 0;
    virtual std::int64_t num_sequences() const = 0;
    virtual std::int64_t length(std::int64_t sequence) const = 0;

    /// Ids of items [offset, offset + out.size()) of `sequence`.
    /// Throws Fault when they do not exist, or an id is not in [0, vocab_size).
    virtual void read(std::int64_t sequence,
                      std::int64_t offset,
                      std::int64_t vocab_size,
                      std::span<std::int64_t> out) const = 0;

    /// Hints that the place of `sequence`, or its items from `offset` on, are needed soon.
    virtual void prefetch_place(std::int64_t) const {}
    virtual void prefetch_items(std::int64_t, std::int64_t) const {}
};

/// The sequences of an indexed dataset of an integer type; throws Fault for floating point.
std::unique_ptr<TokenSource> make_token_source(std::shared_ptr<const IndexedReader> reader);

/// Sequences of the given lengths; one of length l holds 1, 2, ..., l - 1, eod.
std::unique_ptr<TokenSource> make_mock_source(std::vector<std::int32_t> lengths, std::int64_t eod);

}  // namespace megacore::data
