/// Rows whose number is only known when the last one is there.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <span>

namespace megacore::data {

/// Grows by moving pages, not by copying: memory that was reserved and is never written costs none.
template <class Row>
class RowBuffer {
public:
    RowBuffer() = default;
    RowBuffer(const RowBuffer&) = delete;
    RowBuffer& operator=(const RowBuffer&) = delete;
    ~RowBuffer() { std::free(rows_); }

    std::int64_t size() const { return static_cast<std::int64_t>(size_); }
    std::span<Row> rows() { return {rows_, size_}; }

    void push(const Row& row) {
        if (size_ == capacity_) [[unlikely]]
            resize(std::max<std::size_t>(2 * capacity_, kFirst));
        rows_[size_++] = row;
    }

    /// Hands over the memory, which std::free releases; the buffer is empty afterwards.
    Row* release() {
        if (size_ > 0) resize(size_);
        Row* rows = rows_;
        rows_ = nullptr;
        size_ = capacity_ = 0;
        return rows;
    }

private:
    static constexpr std::size_t kFirst = 4096;
    static constexpr std::size_t kPageBytes = 4096;

    void resize(std::size_t capacity) {
        void* moved = std::realloc(rows_, capacity * sizeof(Row));
        if (moved == nullptr) throw std::bad_alloc();
        rows_ = static_cast<Row*>(moved);
        capacity_ = capacity;
#ifdef MADV_HUGEPAGE
        // Advice only: rows are read at random when they are shuffled.
        const auto address = reinterpret_cast<std::uintptr_t>(moved);
        const std::uintptr_t first = (address + kPageBytes - 1) / kPageBytes * kPageBytes;
        const std::uintptr_t last = (address + capacity * sizeof(Row)) / kPageBytes * kPageBytes;
        if (last > first)
            (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    }

    Row* rows_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace megacore::data
