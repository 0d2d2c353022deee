#include "data/indexed_reader.h"

#include <cstdio>

#include "data/fault.h"
#include "data/publish.h"

namespace megacore::data {
namespace {

std::string printable(const std::byte* bytes, std::int64_t count) {
    std::string text;
    for (std::int64_t i = 0; i < count; ++i) {
        char pair[4];
        std::snprintf(pair, sizeof(pair), "%02x", std::to_integer<unsigned>(bytes[i]));
        text += pair;
    }
    return text;
}

}  // namespace

IndexedReader::IndexedReader(std::string prefix, Options options)
    : prefix_(std::move(prefix)), options_(options) {
    const std::string index_path = prefix_ + ".idx";
    const std::string data_path = prefix_ + ".bin";
    finish_interrupted_publish(prefix_);
    const bool has_index = file_exists(index_path);
    const bool has_data = file_exists(data_path);
    if (!has_index || !has_data) {
        fault("indexed dataset ",
              prefix_,
              ": expected ",
              index_path,
              " and ",
              data_path,
              "; ",
              !has_index && !has_data ? "both are missing"
              : has_index             ? "the .bin file is missing"
                                      : "the .idx file is missing");
    }
    index_.emplace(index_path, true);
    data_.emplace(data_path, options_.mmap);
    data_size_ = data_->size();
    parse_header();
    check_ends();
    if (options_.validate) check_entries();
}

void IndexedReader::parse_header() {
    const std::string& path = index_->path();
    const std::int64_t size = index_->size();
    const std::byte* bytes = index_->bytes();
    if (size < kHeaderBytes) {
        fault(path,
              ": expected a header of ",
              kHeaderBytes,
              " bytes, found a file of ",
              size,
              " bytes");
    }
    if (std::memcmp(bytes, kIndexMagic, sizeof(kIndexMagic)) != 0) {
        fault(path,
              ", byte 0: expected the magic ",
              printable(reinterpret_cast<const std::byte*>(kIndexMagic), sizeof(kIndexMagic)),
              " (MMIDIDX), found ",
              printable(bytes, sizeof(kIndexMagic)));
    }
    const auto version = load_unaligned<std::uint64_t>(bytes + kVersionOffset);
    if (version != kIndexVersion) {
        fault(path, ", byte ", kVersionOffset, ": expected version 1, found ", version);
    }
    const auto code = load_unaligned<std::uint8_t>(bytes + kTypeOffset);
    if (!is_token_type(code)) {
        fault(path,
              ", byte ",
              kTypeOffset,
              ": expected a dtype code from 1 to 8, found ",
              unsigned{code});
    }
    type_ = static_cast<TokenType>(code);

    const auto sequences = load_unaligned<std::uint64_t>(bytes + kSequencesOffset);
    const auto boundaries = load_unaligned<std::uint64_t>(bytes + kBoundariesOffset);
    // Each term is checked alone before the sum, so the sum cannot overflow.
    const auto limit = static_cast<std::uint64_t>(size);
    const std::uint64_t per_sequence = options_.multimodal ? 13 : 12;
    if (sequences > limit / per_sequence || boundaries > limit / 8 ||
        kHeaderBytes + sequences * per_sequence + boundaries * 8 != limit) {
        fault(path,
              ", byte ",
              kSequencesOffset,
              ": ",
              sequences,
              " sequences and ",
              boundaries,
              " document boundaries need ",
              kHeaderBytes,
              " + ",
              sequences,
              " * ",
              per_sequence,
              " + ",
              boundaries,
              " * 8 bytes",
              options_.multimodal ? " (multimodal dataset)" : "",
              ", but the file has ",
              size,
              "; it is truncated, damaged, or ",
              options_.multimodal ? "not multimodal" : "multimodal");
    }
    if (boundaries == 0) {
        fault(path,
              ", byte ",
              kBoundariesOffset,
              ": expected at least one document boundary, found 0");
    }
    const auto s = static_cast<std::int64_t>(sequences);
    const auto d = static_cast<std::int64_t>(boundaries);
    lengths_ = {bytes + kHeaderBytes, s};
    byte_offsets_ = {bytes + kHeaderBytes + 4 * s, s};
    boundaries_ = {bytes + kHeaderBytes + 12 * s, d};
    if (options_.multimodal) modes_ = {bytes + kHeaderBytes + 12 * s + 8 * d, s};
}

void IndexedReader::check_ends() const {
    const std::string& path = index_->path();
    const std::int64_t s = num_sequences();
    const std::int64_t last = boundaries_.size() - 1;
    if (boundaries_[0] != 0) {
        fault(path,
              ", byte ",
              kHeaderBytes + 12 * s,
              ": expected first document boundary 0, found ",
              boundaries_[0]);
    }
    if (boundaries_[last] != s) {
        fault(path,
              ", byte ",
              kHeaderBytes + 12 * s + 8 * last,
              ": expected last document boundary ",
              s,
              " (the number of sequences), found ",
              boundaries_[last]);
    }
    std::int64_t expected_bytes = 0;
    if (s > 0) {
        const std::int64_t length = lengths_[s - 1];
        const std::int64_t offset = byte_offsets_[s - 1];
        if (length < 0 || offset < 0 || offset > INT64_MAX - length * item_bytes()) {
            fault(path,
                  ": last sequence has length ",
                  length,
                  " at byte offset ",
                  offset,
                  "; expected non-negative values");
        }
        expected_bytes = offset + length * item_bytes();
    }
    if (data_size_ != expected_bytes) {
        fault(data_->path(),
              ": ",
              path,
              " says it holds ",
              expected_bytes,
              " bytes (",
              type_name(type_),
              "), but it has ",
              data_size_,
              data_size_ < expected_bytes ? "; it is truncated or belongs to another index"
                                          : "; it belongs to another index");
    }
}

void IndexedReader::check_entries() const {
    const std::string& path = index_->path();
    const std::int64_t s = num_sequences();
    const std::int64_t bytes_per_item = item_bytes();
    std::int64_t expected = 0;
    for (std::int64_t i = 0; i < s; ++i) {
        const std::int64_t length = lengths_[i];
        const std::int64_t offset = byte_offsets_[i];
        if (length < 0) [[unlikely]] {
            fault(path,
                  ", byte ",
                  kHeaderBytes + 4 * i,
                  ": length of sequence ",
                  i,
                  ": expected a non-negative number, found ",
                  length);
        }
        if (offset != expected) [[unlikely]] {
            fault(path,
                  ", byte ",
                  kHeaderBytes + 4 * s + 8 * i,
                  ": offset of sequence ",
                  i,
                  ": expected ",
                  expected,
                  " (the running sum of the lengths), found ",
                  offset);
        }
        expected += length * bytes_per_item;
    }
    std::int64_t previous = 0;
    for (std::int64_t d = 0; d < boundaries_.size(); ++d) {
        const std::int64_t boundary = boundaries_[d];
        if (boundary < previous || boundary > s) [[unlikely]] {
            fault(path,
                  ", byte ",
                  kHeaderBytes + 12 * s + 8 * d,
                  ": document boundary ",
                  d,
                  ": expected a value from ",
                  previous,
                  " to ",
                  s,
                  ", found ",
                  boundary);
        }
        previous = boundary;
    }
}

std::int64_t IndexedReader::locate(std::int64_t sequence,
                                   std::int64_t offset,
                                   std::int64_t count) const {
    if (sequence < 0 || sequence >= num_sequences()) [[unlikely]] {
        fault("indexed dataset ",
              prefix_,
              ": expected a sequence number from 0 to ",
              num_sequences() - 1,
              ", found ",
              sequence);
    }
    const std::int64_t length = lengths_[sequence];
    if (offset < 0 || count < 0 || offset > length || count > length - offset) [[unlikely]] {
        fault("indexed dataset ",
              prefix_,
              ", sequence ",
              sequence,
              ": expected items within its ",
              length,
              ", asked for ",
              count,
              " from ",
              offset);
    }
    // Guards against an index that was opened without full validation.
    const std::int64_t start = byte_offsets_[sequence];
    if (start < 0 || start > data_size_ || (offset + count) * item_bytes() > data_size_ - start)
        [[unlikely]] {
        fault(index_->path(),
              ", byte ",
              kHeaderBytes + 4 * num_sequences() + 8 * sequence,
              ": sequence ",
              sequence,
              " at byte offset ",
              start,
              " with ",
              length,
              " items lies outside of ",
              data_->path(),
              " (",
              data_size_,
              " bytes)");
    }
    return start + offset * item_bytes();
}

void IndexedReader::read(std::int64_t sequence,
                         std::int64_t offset,
                         std::int64_t count,
                         void* out) const {
    const std::int64_t position = locate(sequence, offset, count);
    if (count > 0) data_->read(position, count * item_bytes(), out);
}

void IndexedReader::read_bytes(std::int64_t offset, std::int64_t count, void* out) const {
    if (offset < 0 || count < 0 || offset > data_size_ || count > data_size_ - offset) {
        fault(data_->path(),
              ": expected bytes within its ",
              data_size_,
              ", asked for ",
              count,
              " from ",
              offset);
    }
    if (count > 0) data_->read(offset, count, out);
}

}  // namespace megacore::data
