/// Reader of an indexed dataset: PREFIX.idx (layout in index_layout.h) and PREFIX.bin, the
/// concatenated items of all sequences. A document is a consecutive range of sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "data/index_layout.h"
#include "data/mapped_file.h"
#include "data/token_type.h"

namespace megacore::data {

/// Opens and checks both files. Thread-safe after construction; every access is bounds-checked
/// against the .bin file, so a damaged index can never lead outside of it.
///
/// Throws Fault naming the file, the byte offset, what was expected and what was found when the
/// magic, version or dtype code is wrong, sizes do not add up, a length is negative, an offset is
/// not the running sum, boundaries fall or do not end at S, or .bin has another size.
class IndexedReader {
public:
    struct Options {
        bool multimodal = false;  ///< a mode array follows the boundaries
        bool mmap = true;         ///< map .bin; otherwise each access is a positioned read
        bool validate = true;     ///< check every entry; false: header, sizes and last entries
    };

    IndexedReader(std::string prefix, Options options);

    const std::string& prefix() const { return prefix_; }
    TokenType token_type() const { return type_; }
    std::int64_t item_bytes() const { return item_size(type_); }
    bool multimodal() const { return options_.multimodal; }
    std::int64_t num_sequences() const { return lengths_.size(); }
    std::int64_t num_items() const { return data_size_ / item_bytes(); }

    const UnalignedArray<std::int32_t>& lengths() const { return lengths_; }
    const UnalignedArray<std::int64_t>& byte_offsets() const { return byte_offsets_; }
    const UnalignedArray<std::int64_t>& boundaries() const { return boundaries_; }
    const UnalignedArray<std::int8_t>& modes() const { return modes_; }

    /// First byte of .bin, or null when it is empty or not mapped.
    const std::byte* data() const { return data_->bytes(); }

    /// Byte position in .bin of items [offset, offset + count) of `sequence`, after checking that
    /// they exist. Throws Fault otherwise.
    std::int64_t locate(std::int64_t sequence, std::int64_t offset, std::int64_t count) const;

    /// Copies items [offset, offset + count) of `sequence` to `out`.
    void read(std::int64_t sequence, std::int64_t offset, std::int64_t count, void* out) const;

    /// Copies raw bytes of .bin (merging).
    void read_bytes(std::int64_t offset, std::int64_t count, void* out) const;

private:
    void parse_header();
    void check_ends() const;
    void check_entries() const;

    std::string prefix_;
    Options options_;
    std::optional<MappedFile> index_;
    std::optional<MappedFile> data_;
    std::int64_t data_size_ = 0;
    TokenType type_ = TokenType::kInt32;
    UnalignedArray<std::int32_t> lengths_;
    UnalignedArray<std::int64_t> byte_offsets_;
    UnalignedArray<std::int64_t> boundaries_;
    UnalignedArray<std::int8_t> modes_;
};

}  // namespace megacore::data
