#include "data/publish.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "data/fault.h"

namespace megacore::data {
namespace {

constexpr std::size_t kBufferBytes = 1 << 20;

std::string folder_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

/// Renames become durable only when their folder is flushed. Some file systems refuse to flush a
/// folder; they order renames themselves.
void sync_folder_of(const std::string& path) {
    const int descriptor = ::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
}

/// Whether `path` still names the file that `descriptor` has open.
bool names_file(const std::string& path, int descriptor) {
    struct stat by_path{};
    struct stat by_descriptor{};
    return ::stat(path.c_str(), &by_path) == 0 && ::fstat(descriptor, &by_descriptor) == 0 &&
           by_path.st_ino == by_descriptor.st_ino && by_path.st_dev == by_descriptor.st_dev;
}

/// File systems without locks are taken as unlocked: the lock only catches two writers of one
/// prefix, which is a mistake anyway.
bool locks_unsupported(int code) {
    return code == ENOSYS || code == EOPNOTSUPP || code == ENOLCK || code == EINVAL;
}

void write_all(int descriptor,
               const std::string& path,
               const std::byte* bytes,
               std::int64_t count,
               std::int64_t offset) {
    while (count > 0) {
        const ssize_t written =
            ::pwrite(descriptor, bytes, static_cast<std::size_t>(count), offset);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) system_fault(path, "write", errno);
        bytes += written;
        offset += written;
        count -= written;
    }
}

}  // namespace

OutputFile::OutputFile(std::string path, int descriptor)
    : path_(std::move(path)), descriptor_(descriptor) {
    buffer_.reserve(kBufferBytes);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      buffer_(std::move(other.buffer_)) {}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

OutputFile OutputFile::create_locked(const std::string& path) {
    while (true) {
        const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (descriptor < 0) system_fault(path, "create", errno);
        OutputFile file(path, descriptor);
        if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
            const int code = errno;
            if (code == EWOULDBLOCK) fault(path, ": another process is writing this dataset");
            if (code == EINTR) continue;
            if (!locks_unsupported(code)) system_fault(path, "lock", code);
        }
        // Between open and lock its previous owner may have published the file: truncating it now
        // would destroy a finished dataset.
        if (!names_file(path, descriptor)) continue;
        if (::ftruncate(descriptor, 0) != 0) system_fault(path, "truncate", errno);
        return file;
    }
}

OutputFile OutputFile::create_nameless(const std::string& path) {
    std::string name = path + ".XXXXXX";
    const int descriptor = ::mkostemp(name.data(), O_CLOEXEC);
    if (descriptor < 0) system_fault(name, "create", errno);
    ::unlink(name.c_str());
    return OutputFile(path, descriptor);
}

void OutputFile::append(const void* bytes, std::int64_t count) {
    const auto* source = static_cast<const std::byte*>(bytes);
    const auto size = static_cast<std::size_t>(count);
    if (buffer_.size() + size > kBufferBytes) flush();
    if (size >= kBufferBytes) {
        write_all(descriptor_, path_, source, count, size_);
        size_ += count;
    } else {
        buffer_.insert(buffer_.end(), source, source + size);
    }
}

void OutputFile::append_file(OutputFile& source) {
    source.flush();
    std::vector<std::byte> chunk(kBufferBytes);
    for (std::int64_t offset = 0; offset < source.size_;) {
        const auto count = std::min(static_cast<std::int64_t>(kBufferBytes), source.size_ - offset);
        source.read_back(offset, chunk.data(), count);
        append(chunk.data(), count);
        offset += count;
    }
}

void OutputFile::overwrite(std::int64_t offset, const void* bytes, std::int64_t count) {
    flush();
    MEGACORE_CHECK(offset >= 0 && offset + count <= size_, "overwrite of bytes never written");
    write_all(descriptor_, path_, static_cast<const std::byte*>(bytes), count, offset);
}

void OutputFile::read_back(std::int64_t offset, void* out, std::int64_t count) {
    auto* target = static_cast<std::byte*>(out);
    flush();
    while (count > 0) {
        const ssize_t got = ::pread(descriptor_, target, static_cast<std::size_t>(count), offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) system_fault(path_, "read back", errno);
        if (got == 0) fault(path_, ": shorter than what was written to it");
        target += got;
        offset += got;
        count -= got;
    }
}

void OutputFile::flush() {
    if (buffer_.empty()) return;
    const auto count = static_cast<std::int64_t>(buffer_.size());
    write_all(descriptor_, path_, buffer_.data(), count, size_);
    size_ += count;
    buffer_.clear();
}

void OutputFile::sync() {
    flush();
    if (::fsync(descriptor_) != 0) system_fault(path_, "flush to disk", errno);
}

void OutputFile::rename_to(const std::string& path) {
    if (std::rename(path_.c_str(), path.c_str()) != 0) {
        const int code = errno;
        fault(path_, ": cannot rename to ", path, ": ", std::strerror(code));
    }
    path_ = path;
}

void OutputFile::remove() {
    buffer_.clear();
    if (names_file(path_, descriptor_)) ::unlink(path_.c_str());
}

bool file_exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

void publish_pair(const std::string& prefix, OutputFile& data, OutputFile& index) {
    data.sync();
    index.sync();
    index.rename_to(prefix + ".idx.committed");
    sync_folder_of(index.path());
    data.rename_to(prefix + ".bin");
    index.rename_to(prefix + ".idx");
    sync_folder_of(index.path());
}

void finish_interrupted_publish(const std::string& prefix) {
    const std::string committed = prefix + ".idx.committed";
    while (true) {
        int descriptor = ::open(committed.c_str(), O_RDWR | O_CLOEXEC);
        if (descriptor < 0) descriptor = ::open(committed.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) return;  // the normal case: nothing was interrupted
        // A living writer holds the lock only for the two renames that are left.
        int locked;
        do {
            locked = ::flock(descriptor, LOCK_EX);
        } while (locked != 0 && errno == EINTR);
        if (!names_file(committed, descriptor)) {
            ::close(descriptor);
            continue;
        }
        const std::string partial = prefix + ".bin.partial";
        const std::string index = prefix + ".idx";
        const bool moved =
            (std::rename(partial.c_str(), (prefix + ".bin").c_str()) == 0 || errno == ENOENT) &&
            std::rename(committed.c_str(), index.c_str()) == 0;
        const int code = errno;
        ::close(descriptor);
        if (!moved) {
            fault(committed,
                  ": a writer was interrupted while publishing ",
                  prefix,
                  ", and completing it failed (",
                  std::strerror(code),
                  "); open the dataset once with permission to rename its files");
        }
        sync_folder_of(index);
        return;
    }
}

}  // namespace megacore::data
