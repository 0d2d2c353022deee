#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "data/fault.h"

namespace megacore::data {

MappedFile::MappedFile(std::string path, bool map) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) system_fault(path_, "open", errno);
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
        const int code = errno;
        ::close(descriptor_);
        if (S_ISREG(status.st_mode)) system_fault(path_, "stat", code);
        fault(path_, ": expected a regular file");
    }
    size_ = status.st_size;
    if (!map || size_ == 0) return;
    void* mapping =
        ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, descriptor_, 0);
    if (mapping == MAP_FAILED) {
        const int code = errno;
        ::close(descriptor_);
        system_fault(path_, "map into memory", code);
    }
    bytes_ = static_cast<const std::byte*>(mapping);
}

MappedFile::~MappedFile() {
    if (bytes_ != nullptr) {
        ::munmap(const_cast<std::byte*>(bytes_), static_cast<std::size_t>(size_));
    }
    ::close(descriptor_);
}

void MappedFile::read(std::int64_t offset, std::int64_t count, void* out) const {
    if (bytes_ != nullptr) {
        std::memcpy(out, bytes_ + offset, static_cast<std::size_t>(count));
        return;
    }
    auto* target = static_cast<std::byte*>(out);
    while (count > 0) {
        const ssize_t got = ::pread(descriptor_, target, static_cast<std::size_t>(count), offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) system_fault(path_, "read", errno);
        if (got == 0) {
            fault(path_,
                  ": file ends at byte ",
                  offset,
                  ", but its index says ",
                  count,
                  " more bytes follow; it was truncated while in use");
        }
        target += got;
        offset += got;
        count -= got;
    }
}

}  // namespace megacore::data
