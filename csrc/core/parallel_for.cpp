#include "core/parallel_for.h"

#include <atomic>

namespace megacore {
namespace {

void run_in_caller(std::int64_t begin, std::int64_t end, std::int64_t, RangeBody body) {
    body(begin, end);
}

std::atomic<ParallelFor> installed{run_in_caller};

}  // namespace

void set_parallel_for(ParallelFor loop) { installed.store(loop, std::memory_order_release); }

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeBody body) {
    if (begin < end) installed.load(std::memory_order_acquire)(begin, end, grain, body);
}

}  // namespace megacore
