/// Rows whose number is only known when the last one is there.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>

namespace megacore::data {

/// Rows of a trivial type on huge pages. Memory that is reserved and never written costs none.
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
        if (size_ == capacity_) [[unlikely]] {
            if (!grow(std::max<std::size_t>(2 * capacity_, kFirst))) throw std::bad_alloc();
        }
        rows_[size_++] = row;
    }

    /// Says how many rows there will be: a hint, so that they need not be moved.
    void expect(double rows) {
        if (rows > static_cast<double>(capacity_) && rows < kMostExpected) {
            (void)grow(static_cast<std::size_t>(rows));
        }
    }

    /// Hands over the memory, which std::free releases; the buffer is empty afterwards.
    Row* release() {
        Row* rows = rows_;
        rows_ = nullptr;
        size_ = capacity_ = 0;
        return rows;
    }

private:
    static constexpr std::size_t kFirst = 4096;
    static constexpr std::size_t kPageBytes = 2 << 20;
    static constexpr double kMostExpected = 1e12;

    bool grow(std::size_t capacity) {
        const std::size_t bytes =
            (capacity * sizeof(Row) + kPageBytes - 1) / kPageBytes * kPageBytes;
        void* memory = std::aligned_alloc(kPageBytes, bytes);
        if (memory == nullptr) return false;
#ifdef MADV_HUGEPAGE
        (void)::madvise(memory, bytes, MADV_HUGEPAGE);  // advice only
#endif
        if (size_ > 0) std::memcpy(memory, rows_, size_ * sizeof(Row));
        std::free(rows_);
        rows_ = static_cast<Row*>(memory);
        capacity_ = bytes / sizeof(Row);
        return true;
    }

    Row* rows_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace megacore::data
