#include "data/mersenne64.h"

#include <algorithm>
#include <utility>

#include "data/multiversion.h"

namespace megacore::data {
namespace {

constexpr int kShift = 156;
constexpr std::uint64_t kMatrix = 0xb5026f5aa96619e9u;
constexpr std::uint64_t kUpper = 0xffffffff80000000u;

// As in random_state.cpp: draws stay in the first-level cache until they are used, and swaps have
// their memory fetched into the second-level cache, which can have more misses under way.
constexpr std::size_t kChunk = 4096;
constexpr std::size_t kAhead = 64;

inline std::uint64_t twist(std::uint64_t upper, std::uint64_t lower, std::uint64_t shifted) {
    const std::uint64_t word = (upper & kUpper) | (lower & ~kUpper);
    return shifted ^ (word >> 1) ^ ((std::uint64_t{0} - (lower & 1u)) & kMatrix);
}

}  // namespace

Mersenne64::Mersenne64(std::uint64_t seed) {
    for (int i = 0; i < kWords; ++i) {
        state_[i] = seed;
        seed = 6364136223846793005u * (seed ^ (seed >> 62)) + static_cast<std::uint64_t>(i) + 1;
    }
}

// Cut where a word starts to depend on one of the same pass, so that the loops vectorise.
MEGACORE_MULTIVERSION void Mersenne64::generate() {
    constexpr int kLag = kWords - kShift;
    static_assert(2 * kLag == kWords);
    for (int i = 0; i < kLag; ++i) {
        state_[i] = twist(state_[i], state_[i + 1], state_[i + kShift]);
    }
    for (int i = kLag; i < kWords - 1; ++i) {
        state_[i] = twist(state_[i], state_[i + 1], state_[i - kLag]);
    }
    state_[kWords - 1] = twist(state_[kWords - 1], state_[0], state_[kShift - 1]);
    for (int i = 0; i < kWords; ++i) {
        std::uint64_t word = state_[i];
        word ^= (word >> 29) & 0x5555555555555555u;
        word ^= (word << 17) & 0x71d67fffeda60000u;
        word ^= (word << 37) & 0xfff7eee000000000u;
        output_[i] = word ^ (word >> 43);
    }
    position_ = 0;
}

template <class Row>
void shuffle_rows(std::span<Row> rows, Mersenne64& random, const std::function<void()>& tick) {
    if (rows.size() < 2) return;
    Row* data = rows.data();
    std::uint64_t targets[kChunk];
    for (std::uint64_t i = rows.size() - 1; i > 0;) {
        tick();
        const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(kChunk, i));
        for (std::size_t k = 0; k < count; ++k) {
            targets[k] = random.next() % (i - k + 1);
            if (k < kAhead) __builtin_prefetch(data + targets[k], 1, 2);
        }
        for (std::size_t k = 0; k < count; ++k) {
            const auto* ahead = data + targets[std::min(k + kAhead, count - 1)];
            __builtin_prefetch(ahead, 1, 2);
            __builtin_prefetch(reinterpret_cast<const char*>(ahead + 1) - 1, 1, 2);
            std::swap(data[i - k], data[targets[k]]);
        }
        i -= count;
    }
}

template void shuffle_rows(std::span<std::array<std::uint32_t, 3>>,
                           Mersenne64&,
                           const std::function<void()>&);
template void shuffle_rows(std::span<std::array<std::uint64_t, 3>>,
                           Mersenne64&,
                           const std::function<void()>&);
template void shuffle_rows(std::span<std::array<std::uint32_t, 4>>,
                           Mersenne64&,
                           const std::function<void()>&);
template void shuffle_rows(std::span<std::array<std::uint64_t, 4>>,
                           Mersenne64&,
                           const std::function<void()>&);

}  // namespace megacore::data
