#include "data/token_source.h"

#include <algorithm>
#include <numeric>

#include "data/fault.h"
#include "data/multiversion.h"

namespace megacore::data {
namespace {

// Cache lines of a sample fetched ahead; the hardware goes on from there.
constexpr std::int64_t kPrefetchLines = 8;
constexpr std::int64_t kLineBytes = 64;

/// Widens ids and tells whether one of them is outside of [0, vocab_size).
template <class T>
inline bool widen_any(const T* source,
                      std::int64_t count,
                      std::int64_t vocab_size,
                      std::int64_t* out) {
    const auto limit = static_cast<std::uint64_t>(vocab_size);
    std::uint64_t bad = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const auto id = static_cast<std::int64_t>(source[i]);
        out[i] = id;
        bad |= static_cast<std::uint64_t>(static_cast<std::uint64_t>(id) >= limit);
    }
    return bad != 0;
}

// The two types that text datasets have.
MEGACORE_MULTIVERSION bool widen(const std::uint16_t* source,
                                 std::int64_t count,
                                 std::int64_t vocab_size,
                                 std::int64_t* out) {
    std::uint32_t largest = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = source[i];
        largest = std::max<std::uint32_t>(largest, source[i]);
    }
    return largest >= static_cast<std::uint64_t>(vocab_size) && count > 0;
}

MEGACORE_MULTIVERSION bool widen(const std::int32_t* source,
                                 std::int64_t count,
                                 std::int64_t vocab_size,
                                 std::int64_t* out) {
    std::uint32_t largest = 0;  // negative ids are the largest unsigned ones
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = source[i];
        largest = std::max(largest, static_cast<std::uint32_t>(source[i]));
    }
    return count > 0 && (largest > INT32_MAX || largest >= static_cast<std::uint64_t>(vocab_size));
}

template <class T>
bool widen(const T* source, std::int64_t count, std::int64_t vocab_size, std::int64_t* out) {
    return widen_any(source, count, vocab_size, out);
}

[[noreturn]] void fault_id(const TokenSource& source,
                           std::int64_t sequence,
                           std::int64_t offset,
                           std::int64_t vocab_size,
                           std::span<const std::int64_t> ids) {
    const auto bad = std::find_if(ids.begin(), ids.end(), [vocab_size](std::int64_t id) {
        return id < 0 || id >= vocab_size;
    });
    fault(source.name(),
          ", sequence ",
          sequence,
          ", item ",
          offset + (bad - ids.begin()),
          ": expected a token id from 0 to ",
          vocab_size - 1,
          " (the vocabulary), found ",
          *bad,
          "; the data was made with another tokenizer");
}

template <class T>
class IndexedSource final : public TokenSource {
public:
    explicit IndexedSource(std::shared_ptr<const IndexedReader> reader)
        : reader_(std::move(reader)), name_("indexed dataset " + reader_->prefix()) {}

    const std::string& name() const override { return name_; }
    std::int64_t num_sequences() const override { return reader_->num_sequences(); }
    std::int64_t length(std::int64_t sequence) const override {
        return reader_->lengths()[sequence];
    }

    void read(std::int64_t sequence,
              std::int64_t offset,
              std::int64_t vocab_size,
              std::span<std::int64_t> out) const override {
        const auto count = static_cast<std::int64_t>(out.size());
        const std::int64_t position = reader_->locate(sequence, offset, count);
        bool bad;
        if (reader_->data() != nullptr) {
            bad = widen(reinterpret_cast<const T*>(reader_->data() + position),
                        count,
                        vocab_size,
                        out.data());
        } else {
            std::vector<T> items(out.size());
            reader_->read(sequence, offset, count, items.data());
            bad = widen(items.data(), count, vocab_size, out.data());
        }
        if (bad) [[unlikely]]
            fault_id(*this, sequence, offset, vocab_size, out);
    }

    void prefetch_place(std::int64_t sequence) const override {
        if (sequence < 0 || sequence >= num_sequences()) return;
        __builtin_prefetch(reader_->lengths().bytes() + 4 * sequence);
        __builtin_prefetch(reader_->byte_offsets().bytes() + 8 * sequence);
    }

    void prefetch_items(std::int64_t sequence, std::int64_t offset) const override {
        if (reader_->data() == nullptr || sequence < 0 || sequence >= num_sequences()) return;
        // A hint may point anywhere: an address outside of the mapping is ignored.
        const std::byte* address = reader_->data() + reader_->byte_offsets()[sequence] +
                                   offset * static_cast<std::int64_t>(sizeof(T));
        for (std::int64_t line = 0; line < kPrefetchLines; ++line) {
            __builtin_prefetch(address + line * kLineBytes);
        }
    }

private:
    std::shared_ptr<const IndexedReader> reader_;
    std::string name_;
};

class MockSource final : public TokenSource {
public:
    MockSource(std::vector<std::int32_t> lengths, std::int64_t eod)
        : lengths_(std::move(lengths)), eod_(eod), name_("mock dataset") {}

    const std::string& name() const override { return name_; }
    std::int64_t num_sequences() const override {
        return static_cast<std::int64_t>(lengths_.size());
    }
    std::int64_t length(std::int64_t sequence) const override {
        return lengths_[static_cast<std::size_t>(sequence)];
    }

    void read(std::int64_t sequence,
              std::int64_t offset,
              std::int64_t vocab_size,
              std::span<std::int64_t> out) const override {
        const auto count = static_cast<std::int64_t>(out.size());
        if (sequence < 0 || sequence >= num_sequences() || offset < 0 ||
            offset + count > length(sequence)) {
            fault(name_, ": no items ", offset, " to ", offset + count, " in sequence ", sequence);
        }
        std::iota(out.begin(), out.end(), offset + 1);
        if (count > 0 && offset + count == length(sequence)) out.back() = eod_;
        const bool bad = std::any_of(out.begin(), out.end(), [vocab_size](std::int64_t id) {
            return id < 0 || id >= vocab_size;
        });
        if (bad) {
            // Not a fault of a file: small vocabularies are wanted in trials without data.
            for (std::int64_t& id : out) id = id == eod_ ? eod_ : id % vocab_size;
        }
    }

private:
    std::vector<std::int32_t> lengths_;
    std::int64_t eod_;
    std::string name_;
};

}  // namespace

std::unique_ptr<TokenSource> make_token_source(std::shared_ptr<const IndexedReader> reader) {
    switch (reader->token_type()) {
        case TokenType::kUInt8:
            return std::make_unique<IndexedSource<std::uint8_t>>(reader);
        case TokenType::kInt8:
            return std::make_unique<IndexedSource<std::int8_t>>(reader);
        case TokenType::kInt16:
            return std::make_unique<IndexedSource<std::int16_t>>(reader);
        case TokenType::kUInt16:
            return std::make_unique<IndexedSource<std::uint16_t>>(reader);
        case TokenType::kInt32:
            return std::make_unique<IndexedSource<std::int32_t>>(reader);
        case TokenType::kInt64:
            return std::make_unique<IndexedSource<std::int64_t>>(reader);
        case TokenType::kFloat32:
        case TokenType::kFloat64:
            break;
    }
    fault("indexed dataset ",
          reader->prefix(),
          ": expected integer token ids, found ",
          type_name(reader->token_type()));
}

std::unique_ptr<TokenSource> make_mock_source(std::vector<std::int32_t> lengths, std::int64_t eod) {
    return std::make_unique<MockSource>(std::move(lengths), eod);
}

}  // namespace megacore::data
