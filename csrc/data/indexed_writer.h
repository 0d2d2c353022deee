/// Writer of an indexed dataset (layout in index_layout.h) in bounded memory: the .bin and the
/// lengths stream to disk, the remaining arrays of the .idx are made from them at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "data/publish.h"
#include "data/token_type.h"

namespace megacore::data {

/// Nothing appears under the final names before `finalize` (see publish.h). A writer destroyed
/// before that removes its files. Failures (disk full, other writer, wrong input) throw Fault.
class IndexedWriter {
public:
    IndexedWriter(std::string prefix, TokenType type, bool multimodal);
    ~IndexedWriter();
    IndexedWriter(const IndexedWriter&) = delete;
    IndexedWriter& operator=(const IndexedWriter&) = delete;

    const std::string& prefix() const { return prefix_; }
    TokenType token_type() const { return type_; }
    bool multimodal() const { return multimodal_; }
    std::int64_t num_sequences() const { return num_sequences_; }
    std::int64_t num_documents() const { return num_documents_; }

    /// Appends sequences to the open document.
    /// @param items    the items of all sequences, of the writer's type
    /// @param lengths  items per sequence; their sum must be `num_items`
    /// @param modes    one per sequence in a multimodal dataset, else empty
    void add_sequences(const void* items,
                       std::int64_t num_items,
                       std::span<const std::int64_t> lengths,
                       std::span<const std::int8_t> modes);

    /// Closes the open document, which may be empty.
    void end_document();

    /// Appends whole documents.
    /// @param sequences_per_document  its sum must be the number of lengths
    void add_documents(const void* items,
                       std::int64_t num_items,
                       std::span<const std::int64_t> lengths,
                       std::span<const std::int64_t> sequences_per_document,
                       std::span<const std::int8_t> modes);

    /// Appends every document of another dataset of the same type.
    void append(const std::string& prefix);

    /// Completes the .idx, flushes both files to disk and publishes them.
    void finalize();

    /// Removes what was written; does nothing after finalize.
    void abandon();

private:
    void check_open() const;

    std::string prefix_;
    TokenType type_;
    bool multimodal_;
    std::int64_t num_sequences_ = 0;
    std::int64_t num_documents_ = 0;
    std::int64_t last_boundary_ = 0;
    std::optional<OutputFile> data_;
    std::optional<OutputFile> index_;       // header and lengths until finalize
    std::optional<OutputFile> boundaries_;  // int64, becomes part of the index
    std::optional<OutputFile> modes_;       // int8
};

}  // namespace megacore::data
