/// The 64-bit Mersenne Twister, number for number that of std::mt19937_64, and the shuffle of rows
/// that is made from it. Source: Nishimura, "Tables of 64-bit Mersenne Twisters" (2000).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace megacore::data {

class Mersenne64 {
public:
    explicit Mersenne64(std::uint64_t seed);

    std::uint64_t next() {
        if (position_ == kWords) generate();
        return output_[position_++];
    }

private:
    static constexpr int kWords = 312;

    void generate();

    std::uint64_t state_[kWords];
    std::uint64_t output_[kWords];  // tempered words of the current state
    int position_ = kWords;
};

/// Permutes rows: for i from the last row down to 1, row i changes places with row next() % (i +
/// 1). Targets are drawn ahead and their memory is fetched, so that the cache misses overlap.
/// @param tick  called every few thousand rows; what it throws ends the shuffle
template <class Row>
void shuffle_rows(std::span<Row> rows, Mersenne64& random, const std::function<void()>& tick);

extern template void shuffle_rows(std::span<std::array<std::uint32_t, 3>>,
                                  Mersenne64&,
                                  const std::function<void()>&);
extern template void shuffle_rows(std::span<std::array<std::uint64_t, 3>>,
                                  Mersenne64&,
                                  const std::function<void()>&);
extern template void shuffle_rows(std::span<std::array<std::uint32_t, 4>>,
                                  Mersenne64&,
                                  const std::function<void()>&);
extern template void shuffle_rows(std::span<std::array<std::uint64_t, 4>>,
                                  Mersenne64&,
                                  const std::function<void()>&);

}  // namespace megacore::data
