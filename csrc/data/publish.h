/// Output files that appear whole or not at all.
///
/// While a dataset is written, its files are PREFIX.bin.partial and PREFIX.idx.partial, locked by
/// the writer. Publishing flushes both to disk and takes three renames:
///
///   1. PREFIX.idx.partial -> PREFIX.idx.committed   from here on the new dataset is complete
///   2. PREFIX.bin.partial -> PREFIX.bin
///   3. PREFIX.idx.committed -> PREFIX.idx
///
/// A process killed before 1 leaves the old dataset as it was. Killed between 1 and 3, the next
/// reader or writer of the prefix carries out the rest (finish_interrupted_publish), so a pair is
/// always the old one or the new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace megacore::data {

/// A file that is appended to through a buffer. Move-only; every failure throws Fault.
class OutputFile {
public:
    /// Creates (or takes over a stale) `path`, empty and locked.
    /// Throws Fault when another process is writing it.
    static OutputFile create_locked(const std::string& path);

    /// A nameless file in the folder of `path`: it vanishes with the process, however that ends.
    static OutputFile create_nameless(const std::string& path);

    OutputFile(OutputFile&& other) noexcept;
    OutputFile& operator=(OutputFile&&) = delete;
    ~OutputFile();

    const std::string& path() const { return path_; }
    std::int64_t size() const { return size_ + static_cast<std::int64_t>(buffer_.size()); }

    void append(const void* bytes, std::int64_t count);
    /// Appends the whole of another output file, which is flushed first.
    void append_file(OutputFile& source);
    /// Overwrites bytes that were appended before.
    void overwrite(std::int64_t offset, const void* bytes, std::int64_t count);
    void read_back(std::int64_t offset, void* out, std::int64_t count);
    /// Hands buffered bytes to the operating system.
    void flush();
    /// Forces everything to disk.
    void sync();
    /// Renames the file; the lock stays with it.
    void rename_to(const std::string& path);
    /// Deletes the file under its current name.
    void remove();

private:
    OutputFile(std::string path, int descriptor);

    std::string path_;
    int descriptor_ = -1;
    std::int64_t size_ = 0;  // bytes handed to the operating system
    std::vector<std::byte> buffer_;
};

/// Whether something has this path.
bool file_exists(const std::string& path);

/// Publishes the complete pair as PREFIX.bin and PREFIX.idx (see above).
void publish_pair(const std::string& prefix, OutputFile& data, OutputFile& index);

/// Completes what a killed writer had committed; does nothing when there is nothing to do.
void finish_interrupted_publish(const std::string& prefix);

}  // namespace megacore::data
