/// Scratch memory on huge pages, for tables that are read at random.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

namespace megacore::data {

/// An uninitialised array of `size` values of a trivial type.
template <class T>
class HugeBuffer {
public:
    explicit HugeBuffer(std::size_t size) : size_(size) {
        const std::size_t bytes = (size * sizeof(T) + kPageBytes - 1) / kPageBytes * kPageBytes;
        data_.reset(
            static_cast<T*>(std::aligned_alloc(kPageBytes, bytes == 0 ? kPageBytes : bytes)));
        if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        // Advice only: without huge pages the table works the same, with more TLB misses.
        (void)::madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    }

    std::size_t size() const { return size_; }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    T& operator[](std::size_t i) { return data_.get()[i]; }
    const T& operator[](std::size_t i) const { return data_.get()[i]; }

private:
    static constexpr std::size_t kPageBytes = 2 << 20;
    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::size_t size_;
    std::unique_ptr<T, Free> data_;
};

}  // namespace megacore::data
