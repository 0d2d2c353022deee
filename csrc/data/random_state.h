/// The random numbers of numpy.random.RandomState, bit for bit: MT19937 seeded by one 32-bit
/// number, bounded draws by masked rejection, and the Fisher-Yates shuffle made from them.
/// Source: Matsumoto and Nishimura, "Mersenne Twister" (1998); the numpy legacy generator.
#pragma once

#include <cstdint>
#include <span>

namespace megacore::data {

class RandomState {
public:
    /// Seeds like numpy.random.RandomState(seed).
    explicit RandomState(std::uint32_t seed);

    std::uint32_t next32() {
        if (position_ == kWords) generate();
        return output_[position_++];
    }
    /// The first of two 32-bit draws is the high half.
    std::uint64_t next64();

    /// Uniform in [0, max], by drawing the bits of `max` until the value fits. One 32-bit draw per
    /// try when max < 2^32, else one 64-bit draw; no draw when max is 0.
    std::uint64_t interval(std::uint64_t max);

    /// Uniform in [0, 1) with 53 bits.
    double random_sample();

    /// Permutes `values` like RandomState.shuffle on a one-dimensional array.
    ///
    /// The order of the swaps is part of the result, so the speed comes from drawing ahead and
    /// prefetching: one swap costs a memory access that overlaps with those of its successors.
    template <class T>
    void shuffle(std::span<T> values);

private:
    static constexpr int kWords = 624;

    void generate();
    void draw_targets(std::uint64_t first_limit, std::uint32_t mask, std::span<std::uint32_t> out);

    std::uint32_t state_[kWords];
    std::uint32_t output_[kWords];  // tempered words of the current state
    int position_ = kWords;
};

extern template void RandomState::shuffle(std::span<std::int32_t>);
extern template void RandomState::shuffle(std::span<std::uint32_t>);
extern template void RandomState::shuffle(std::span<std::int64_t>);
extern template void RandomState::shuffle(std::span<std::uint64_t>);

}  // namespace megacore::data
