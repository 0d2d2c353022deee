/// Byte layout of an .idx file. All integers are little-endian and the arrays are not aligned:
///
///   0   "MMIDIDX\0\0"            34             int32[S]  sequence lengths, in items
///   9   u64 version = 1          34 + 4 S       int64[S]  byte offset of every sequence in .bin
///   17  u8  dtype code           34 + 12 S      int64[D]  document boundaries, first 0, last S
///   18  u64 S, sequences         34 + 12 S + 8 D  int8[S]  modes, only in multimodal datasets
///   26  u64 D, documents + 1
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace megacore::data {

static_assert(std::endian::native == std::endian::little, "files are read in place");

inline constexpr char kIndexMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
inline constexpr std::uint64_t kIndexVersion = 1;
inline constexpr std::int64_t kVersionOffset = 9;
inline constexpr std::int64_t kTypeOffset = 17;
inline constexpr std::int64_t kSequencesOffset = 18;
inline constexpr std::int64_t kBoundariesOffset = 26;
inline constexpr std::int64_t kHeaderBytes = 34;

/// Reads a value at any address.
template <class T>
T load_unaligned(const void* address) {
    T value;
    std::memcpy(&value, address, sizeof(T));
    return value;
}

/// A read-only array inside a file, at any address.
template <class T>
class UnalignedArray {
public:
    UnalignedArray() = default;
    UnalignedArray(const std::byte* bytes, std::int64_t size) : bytes_(bytes), size_(size) {}

    T operator[](std::int64_t i) const {
        return load_unaligned<T>(bytes_ + i * static_cast<std::int64_t>(sizeof(T)));
    }
    std::int64_t size() const { return size_; }
    const std::byte* bytes() const { return bytes_; }

private:
    const std::byte* bytes_ = nullptr;
    std::int64_t size_ = 0;
};

}  // namespace megacore::data
