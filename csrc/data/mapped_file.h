/// A file opened for reading, optionally mapped into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace megacore::data {

/// Owns the descriptor and the mapping. Throws Fault when the file cannot be opened or mapped.
class MappedFile {
public:
    /// @param map  Map the whole file read-only; otherwise only `read` is available.
    MappedFile(std::string path, bool map);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::string& path() const { return path_; }
    std::int64_t size() const { return size_; }

    /// First byte of the mapping; null when the file is empty or not mapped.
    const std::byte* bytes() const { return bytes_; }

    /// Copies [offset, offset + count) to `out`. The range must lie inside the file as it was when
    /// opened. Throws Fault when the file turns out shorter.
    void read(std::int64_t offset, std::int64_t count, void* out) const;

private:
    std::string path_;
    int descriptor_ = -1;
    std::int64_t size_ = 0;
    const std::byte* bytes_ = nullptr;
};

}  // namespace megacore::data
