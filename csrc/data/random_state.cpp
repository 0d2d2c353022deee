#include "data/random_state.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

#include "data/multiversion.h"

namespace megacore::data {
namespace {

constexpr int kShift = 397;
constexpr std::uint32_t kMatrix = 0x9908b0df;
constexpr std::uint32_t kUpper = 0x80000000;

// Draws are made this many at a time: they stay in the first-level cache until they are used.
constexpr std::size_t kChunk = 4096;
// Swaps whose memory is fetched ahead, into the second-level cache: that one can have many more
// misses under way than the first.
constexpr std::size_t kAhead = 128;

inline std::uint32_t twist(std::uint32_t upper, std::uint32_t lower, std::uint32_t shifted) {
    const std::uint32_t word = (upper & kUpper) | (lower & ~kUpper);
    return shifted ^ (word >> 1) ^ ((0u - (lower & 1u)) & kMatrix);
}

}  // namespace

RandomState::RandomState(std::uint32_t seed) {
    for (int i = 0; i < kWords; ++i) {
        state_[i] = seed;
        seed = 1812433253u * (seed ^ (seed >> 30)) + static_cast<std::uint32_t>(i) + 1;
    }
}

// The loops are cut where a word starts to depend on one of the same pass, so that each of them
// vectorises.
MEGACORE_MULTIVERSION void RandomState::generate() {
    constexpr int kLag = kWords - kShift;
    for (int i = 0; i < kLag; ++i) {
        state_[i] = twist(state_[i], state_[i + 1], state_[i + kShift]);
    }
    for (int i = kLag; i < 2 * kLag; ++i) {
        state_[i] = twist(state_[i], state_[i + 1], state_[i - kLag]);
    }
    for (int i = 2 * kLag; i < kWords - 1; ++i) {
        state_[i] = twist(state_[i], state_[i + 1], state_[i - kLag]);
    }
    state_[kWords - 1] = twist(state_[kWords - 1], state_[0], state_[kShift - 1]);
    for (int i = 0; i < kWords; ++i) {
        std::uint32_t word = state_[i];
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c5680u;
        word ^= (word << 15) & 0xefc60000u;
        output_[i] = word ^ (word >> 18);
    }
    position_ = 0;
}

std::uint64_t RandomState::next64() {
    const std::uint64_t high = next32();
    return (high << 32) | next32();
}

std::uint64_t RandomState::interval(std::uint64_t max) {
    if (max == 0) return 0;
    const std::uint64_t mask = ~std::uint64_t{0} >> std::countl_zero(max);
    std::uint64_t value;
    if (max <= 0xffffffffu) {
        while ((value = next32() & mask) > max) {
        }
    } else {
        while ((value = next64() & mask) > max) {
        }
    }
    return value;
}

double RandomState::random_sample() {
    const std::uint32_t high = next32() >> 5;
    const std::uint32_t low = next32() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
}

/// out[k] = interval(first_limit - k), for limits that all have the bits of `mask`.
/// Whether a draw is kept is decided without a branch: it is a coin toss.
void RandomState::draw_targets(std::uint64_t first_limit,
                               std::uint32_t mask,
                               std::span<std::uint32_t> out) {
    auto limit = static_cast<std::uint32_t>(first_limit);
    std::size_t count = 0;
    while (count < out.size()) {
        if (position_ == kWords) generate();
        // Every draw fills at most one place, so this many need no further check.
        const int available = kWords - position_;
        const int draws = static_cast<int>(
            std::min<std::size_t>(static_cast<std::size_t>(available), out.size() - count));
        const std::uint32_t* source = output_ + position_;
        for (int k = 0; k < draws; ++k) {
            const std::uint32_t value = source[k] & mask;
            const bool kept = value <= limit;
            out[count] = value;
            count += kept;
            limit -= kept;
        }
        position_ += draws;
    }
}

template <class T>
void RandomState::shuffle(std::span<T> values) {
    if (values.size() < 2) return;
    T* data = values.data();
    std::uint64_t i = values.size() - 1;
    // Positions that need 64-bit draws: more than 4 billion elements.
    for (; i > 0xffffffffu; --i) std::swap(data[i], data[interval(i)]);

    std::uint32_t targets[kChunk];
    while (i > 0) {
        const std::uint64_t lowest = std::bit_floor(i);  // smallest limit with the same mask
        const auto mask = static_cast<std::uint32_t>((lowest << 1) - 1);
        const auto count =
            static_cast<std::size_t>(std::min<std::uint64_t>(kChunk, i - lowest + 1));
        draw_targets(i, mask, {targets, count});
        for (std::size_t k = 0; k < std::min(kAhead, count); ++k) {
            __builtin_prefetch(data + targets[k], 0, 2);
        }
        const std::size_t with_prefetch = count > kAhead ? count - kAhead : 0;
        for (std::size_t k = 0; k < with_prefetch; ++k) {
            __builtin_prefetch(data + targets[k + kAhead], 0, 2);
            std::swap(data[i - k], data[targets[k]]);
        }
        for (std::size_t k = with_prefetch; k < count; ++k) {
            std::swap(data[i - k], data[targets[k]]);
        }
        i -= count;
    }
}

template void RandomState::shuffle(std::span<std::int32_t>);
template void RandomState::shuffle(std::span<std::uint32_t>);
template void RandomState::shuffle(std::span<std::int64_t>);
template void RandomState::shuffle(std::span<std::uint64_t>);

}  // namespace megacore::data
