#include "data/indexed_writer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "data/fault.h"
#include "data/index_layout.h"
#include "data/indexed_reader.h"

namespace megacore::data {

IndexedWriter::IndexedWriter(std::string prefix, TokenType type, bool multimodal)
    : prefix_(std::move(prefix)), type_(type), multimodal_(multimodal) {
    finish_interrupted_publish(prefix_);
    data_.emplace(OutputFile::create_locked(prefix_ + ".bin.partial"));
    try {
        index_.emplace(OutputFile::create_locked(prefix_ + ".idx.partial"));
        boundaries_.emplace(OutputFile::create_nameless(prefix_ + ".idx.boundaries"));
        if (multimodal_) modes_.emplace(OutputFile::create_nameless(prefix_ + ".idx.modes"));
    } catch (...) {
        abandon();
        throw;
    }
    const std::byte header[kHeaderBytes] = {};
    index_->append(header, kHeaderBytes);
    const std::int64_t first = 0;
    boundaries_->append(&first, sizeof(first));
}

IndexedWriter::~IndexedWriter() { abandon(); }

void IndexedWriter::check_open() const {
    if (!data_) fault("indexed dataset ", prefix_, ": the writer is already finished");
}

void IndexedWriter::add_sequences(const void* items,
                                  std::int64_t num_items,
                                  std::span<const std::int64_t> lengths,
                                  std::span<const std::int8_t> modes) {
    check_open();
    std::int64_t total = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        if (lengths[i] < 0 || lengths[i] > INT32_MAX) {
            fault("indexed dataset ",
                  prefix_,
                  ", sequence ",
                  num_sequences_ + static_cast<std::int64_t>(i),
                  ": expected a length from 0 to ",
                  INT32_MAX,
                  ", found ",
                  lengths[i]);
        }
        total += lengths[i];
    }
    if (total != num_items) {
        fault("indexed dataset ",
              prefix_,
              ": the sequence lengths add up to ",
              total,
              ", but ",
              num_items,
              " items were given");
    }
    if (multimodal_ ? modes.size() != lengths.size() : !modes.empty()) {
        fault("indexed dataset ",
              prefix_,
              ": expected ",
              multimodal_ ? lengths.size() : 0,
              " modes, found ",
              modes.size(),
              multimodal_ ? "" : " (the writer is not multimodal)");
    }
    for (const std::int64_t length : lengths) {
        const auto stored = static_cast<std::int32_t>(length);
        index_->append(&stored, sizeof(stored));
    }
    num_sequences_ += static_cast<std::int64_t>(lengths.size());
    data_->append(items, num_items * item_size(type_));
    if (multimodal_) modes_->append(modes.data(), static_cast<std::int64_t>(modes.size()));
}

void IndexedWriter::end_document() {
    check_open();
    boundaries_->append(&num_sequences_, sizeof(num_sequences_));
    last_boundary_ = num_sequences_;
    ++num_documents_;
}

void IndexedWriter::add_documents(const void* items,
                                  std::int64_t num_items,
                                  std::span<const std::int64_t> lengths,
                                  std::span<const std::int64_t> sequences_per_document,
                                  std::span<const std::int8_t> modes) {
    check_open();
    if (last_boundary_ != num_sequences_) {
        fault("indexed dataset ", prefix_, ": a document is open; end it before adding others");
    }
    std::int64_t total = 0;
    for (const std::int64_t count : sequences_per_document) {
        if (count < 0)
            fault("indexed dataset ", prefix_, ": a document with ", count, " sequences");
        total += count;
    }
    if (total != static_cast<std::int64_t>(lengths.size())) {
        fault("indexed dataset ",
              prefix_,
              ": the documents have ",
              total,
              " sequences together, but ",
              lengths.size(),
              " lengths were given");
    }
    std::int64_t boundary = num_sequences_;
    add_sequences(items, num_items, lengths, modes);
    for (const std::int64_t count : sequences_per_document) {
        boundary += count;
        boundaries_->append(&boundary, sizeof(boundary));
    }
    last_boundary_ = boundary;
    num_documents_ += static_cast<std::int64_t>(sequences_per_document.size());
}

void IndexedWriter::append(const std::string& prefix) {
    check_open();
    if (last_boundary_ != num_sequences_) {
        fault("indexed dataset ", prefix_, ": a document is open; end it before appending others");
    }
    const IndexedReader source(prefix, {.multimodal = multimodal_, .mmap = false});
    if (source.token_type() != type_) {
        fault("indexed dataset ",
              prefix,
              ": expected items of type ",
              type_name(type_),
              " like ",
              prefix_,
              ", found ",
              type_name(source.token_type()));
    }
    constexpr std::int64_t kChunkBytes = 4 << 20;
    std::vector<std::byte> chunk(kChunkBytes);
    const std::int64_t data_bytes = source.num_items() * source.item_bytes();
    for (std::int64_t offset = 0; offset < data_bytes;) {
        const std::int64_t count = std::min(kChunkBytes, data_bytes - offset);
        source.read_bytes(offset, count, chunk.data());
        data_->append(chunk.data(), count);
        offset += count;
    }
    index_->append(source.lengths().bytes(), 4 * source.num_sequences());
    for (std::int64_t d = 1; d < source.boundaries().size(); ++d) {
        const std::int64_t boundary = num_sequences_ + source.boundaries()[d];
        boundaries_->append(&boundary, sizeof(boundary));
    }
    if (multimodal_) modes_->append(source.modes().bytes(), source.num_sequences());
    num_sequences_ += source.num_sequences();
    num_documents_ += source.boundaries().size() - 1;
    last_boundary_ = num_sequences_;
}

void IndexedWriter::finalize() {
    check_open();
    if (last_boundary_ != num_sequences_) {
        fault("indexed dataset ",
              prefix_,
              ": ",
              num_sequences_ - last_boundary_,
              " sequences were added after the last end of a document");
    }
    // Byte offsets: the running sum of the lengths, which are read back from the file.
    constexpr std::int64_t kChunk = 1 << 16;
    std::vector<std::int32_t> lengths(kChunk);
    std::vector<std::int64_t> offsets(kChunk);
    std::int64_t offset = 0;
    for (std::int64_t i = 0; i < num_sequences_;) {
        const std::int64_t count = std::min(kChunk, num_sequences_ - i);
        index_->read_back(kHeaderBytes + 4 * i, lengths.data(), 4 * count);
        for (std::int64_t j = 0; j < count; ++j) {
            offsets[static_cast<std::size_t>(j)] = offset;
            offset += lengths[static_cast<std::size_t>(j)] * item_size(type_);
        }
        index_->append(offsets.data(), 8 * count);
        i += count;
    }
    index_->append_file(*boundaries_);
    if (multimodal_) index_->append_file(*modes_);

    std::byte header[kHeaderBytes];
    const auto code = static_cast<std::uint8_t>(type_);
    const std::uint64_t counts[2] = {static_cast<std::uint64_t>(num_sequences_),
                                     static_cast<std::uint64_t>(num_documents_ + 1)};
    std::memcpy(header, kIndexMagic, sizeof(kIndexMagic));
    std::memcpy(header + kVersionOffset, &kIndexVersion, sizeof(kIndexVersion));
    std::memcpy(header + kTypeOffset, &code, sizeof(code));
    std::memcpy(header + kSequencesOffset, counts, sizeof(counts));
    index_->overwrite(0, header, kHeaderBytes);

    publish_pair(prefix_, *data_, *index_);
    data_.reset();
    index_.reset();
    boundaries_.reset();
    modes_.reset();
}

void IndexedWriter::abandon() {
    if (!data_) return;
    // Once committed, the dataset is complete: the next reader finishes the renames.
    const bool committed = index_ && index_->path().ends_with(".committed");
    if (!committed) {
        if (index_) index_->remove();
        data_->remove();
    }
    data_.reset();
    index_.reset();
    boundaries_.reset();
    modes_.reset();
}

}  // namespace megacore::data
