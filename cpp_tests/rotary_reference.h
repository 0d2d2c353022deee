/// Problems of kernels/rotary.h and their results in float64, for the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <ostream>
#include <vector>

#include "kernels/rotary.h"
#include "support.h"

namespace megacore::testing {

struct RotaryCase {
    std::int64_t tokens;
    std::int64_t groups;
    std::int64_t ratio;
    std::int64_t size;
    std::int64_t half;
    std::int64_t angles = tokens;  // rows of cos and sin
    bool with_kv = true;
    bool interleaved = false;
    bool backward = false;
    std::size_t offset = 0;  // CUDA: elements behind an aligned address
};

inline std::ostream& operator<<(std::ostream& out, const RotaryCase& c) {
    return out << "T " << c.tokens << ", G " << c.groups << ", R " << c.ratio << ", D " << c.size
               << ", half " << c.half << (c.with_kv ? ", with k and v" : "")
               << (c.interleaved ? ", interleaved" : "") << (c.backward ? ", backward" : "");
}

// Odd and even heads, wholly and partly turned, with and without vectors.
inline const RotaryCase kRotaryCases[] = {
    {.tokens = 1, .groups = 1, .ratio = 1, .size = 2, .half = 1},
    {.tokens = 6, .groups = 2, .ratio = 3, .size = 7, .half = 2, .angles = 3},
    {.tokens = 6, .groups = 2, .ratio = 3, .size = 7, .half = 3, .interleaved = true},
    {.tokens = 5, .groups = 1, .ratio = 2, .size = 64, .half = 32, .backward = true},
    {.tokens = 4,
     .groups = 2,
     .ratio = 1,
     .size = 48,
     .half = 16,
     .angles = 2,
     .interleaved = true},
    {.tokens = 3, .groups = 1, .ratio = 5, .size = 128, .half = 64, .with_kv = false},
    {.tokens = 3,
     .groups = 1,
     .ratio = 5,
     .size = 96,
     .half = 24,
     .with_kv = false,
     .interleaved = true,
     .backward = true},
    {.tokens = 2, .groups = 3, .ratio = 4, .size = 64, .half = 32, .backward = true, .offset = 1},
    {.tokens = 3, .groups = 1, .ratio = 1, .size = 9, .half = 0},
};

template <class T>
struct RotaryProblem {
    RotaryCase c;
    std::int64_t per_group = c.ratio + (c.with_kv ? 2 : 0);
    Buffer<T> packed{"packed", {c.tokens, c.groups, per_group, c.size}};
    Buffer<T> q{"q", {c.tokens, c.groups, c.ratio, c.size}};
    Buffer<T> k{"k", {c.tokens, c.groups, c.size}}, v{"v", {c.tokens, c.groups, c.size}};
    Buffer<float> cos{"cos", {c.angles, c.half}}, sin{"sin", {c.angles, c.half}};

    explicit RotaryProblem(const RotaryCase& c_) : c(c_) {
        packed.fill_normal(1);
        q.fill_normal(2);
        k.fill_normal(3);
        v.fill_normal(4);
        for (std::int64_t i = 0; i < c.angles * c.half; ++i) {
            cos.elements[i] = std::cos(0.7f * static_cast<float>(i));
            sin.elements[i] = std::sin(0.7f * static_cast<float>(i));
        }
    }

    Rotary args() {
        Rotary result{.packed = packed.tensor, .q = q.tensor, .cos = cos.tensor, .sin = sin.tensor};
        if (c.with_kv) {
            result.k = k.tensor;
            result.v = v.tensor;
        }
        result.interleaved = c.interleaved;
        result.backward = c.backward;
        return result;
    }

    /// Compares what is in the outputs with float64; each lane is the sum of two products.
    void expect_result() const {
        const std::int64_t D = c.size;
        std::vector<double> values[4], bounds[4];  // packed, q, k, v
        for (std::int64_t token = 0; token < c.tokens; ++token) {
            for (std::int64_t number = 0; number < c.groups * per_group; ++number) {
                const std::int64_t group = token * c.groups + number / per_group;
                const std::int64_t within = number % per_group;
                const int kind = within < c.ratio ? 1 : within == c.ratio ? 2 : 3;
                const Buffer<T>& split = kind == 1 ? q : kind == 2 ? k : v;
                const std::int64_t split_at = (kind == 1 ? group * c.ratio + within : group) * D;
                const std::int64_t packed_at = (token * c.groups * per_group + number) * D;
                const auto x = [&](std::int64_t lane) {
                    return c.backward ? split.at(split_at + lane) : packed.at(packed_at + lane);
                };
                for (std::int64_t lane = 0; lane < D; ++lane) {
                    double value = x(lane), size = 0.0;
                    if (kind != 3 && lane < 2 * c.half) {
                        const bool first = c.interleaved ? lane % 2 == 0 : lane < c.half;
                        const std::int64_t pair = c.interleaved ? lane / 2 : lane % c.half;
                        const std::int64_t step = c.interleaved ? 1 : c.half;
                        const std::int64_t at = token % c.angles * c.half + pair;
                        const double sign = (c.backward ? -1.0 : 1.0) * (first ? -1.0 : 1.0);
                        const double other = x(first ? lane + step : lane - step);
                        value = x(lane) * cos.at(at) + sign * other * sin.at(at);
                        size = std::abs(x(lane)) + std::abs(other);
                    }
                    const int target = c.backward ? 0 : kind;
                    values[target].push_back(value);
                    bounds[target].push_back(
                        size == 0.0 ? 0.0 : rounding_error<T>(value) + 3 * 0x1p-24 * size);
                }
            }
        }
        const auto close = [](const Buffer<T>& buffer, const auto& expected, const auto& limits) {
            for (std::size_t i = 0; i < expected.size(); ++i) {
                const double found = buffer.at(static_cast<std::int64_t>(i));
                ASSERT_LE(std::abs(found - expected[i]), limits[i])
                    << buffer.tensor.name << "[" << i << "] is " << found << " instead of "
                    << expected[i];
            }
        };
        close(packed, values[0], bounds[0]);
        close(q, values[1], bounds[1]);
        close(k, values[2], bounds[2]);
        close(v, values[3], bounds[3]);
    }
};

}  // namespace megacore::testing
