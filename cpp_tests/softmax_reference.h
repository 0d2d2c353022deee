/// Problems of kernels/softmax.h and their results in float64, for the CPU and CUDA kernels.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/softmax.h"
#include "support.h"

namespace megacore::testing {

struct SoftmaxCase {
    std::int64_t batch;
    std::int64_t heads;
    std::int64_t queries;
    std::int64_t keys;
    SoftmaxRange range{};
    std::int64_t mask_queries = -1;  // no mask; 1 or all rows of it
    std::size_t offset = 0;          // CUDA: elements behind an aligned address
};

// 1, primes, non-multiples of vectors, rows that see nothing, windows, rows longer than a buffer.
inline constexpr SoftmaxCase kSoftmaxCases[] = {{1, 1, 1, 1},
                                                {2, 3, 5, 7, {}, 1},
                                                {2, 2, 9, 64, {}, 9},
                                                {1, 2, 33, 33, {true}},
                                                {1, 2, 20, 48, {true, 28, 13}, -1, 1},
                                                {1, 1, 9, 40, {true, -3}, 9},
                                                {1, 1, 2, 9001},
                                                {1, 1, 3, 8192, {true, 8000, 5000}}};

template <class X>
struct SoftmaxProblem {
    SoftmaxCase c;
    Buffer<X> x{"x", {c.batch, c.heads, c.queries, c.keys}},
        y{"y", {c.batch, c.heads, c.queries, c.keys}};
    Buffer<X> dy{"dy", {c.batch, c.heads, c.queries, c.keys}},
        dx{"dx", {c.batch, c.heads, c.queries, c.keys}};
    std::vector<std::uint8_t> hidden;
    TensorView mask{.name = "mask"};
    double scale = 0.7;

    explicit SoftmaxProblem(const SoftmaxCase& c_) : c(c_) {
        x.fill_normal(1);
        for (X& value : x.elements) value = from_float<X>(4.0f * to_float(value));
        dy.fill_normal(2);
        if (c.mask_queries < 0) return;
        // The second row of the mask hides everything.
        for (std::int64_t i = 0; i < c.batch * c.mask_queries * c.keys; ++i) {
            hidden.push_back(i * 7919 % 3 == 0 || i / c.keys == 1);
        }
        mask = contiguous_view(
            "mask", hidden.data(), DType::kBool, {c.batch, 1, c.mask_queries, c.keys});
    }

    SoftmaxForward forward_args() {
        return {.y = y.tensor, .x = x.tensor, .mask = mask, .scale = scale, .range = c.range};
    }
    SoftmaxBackward backward_args() {
        return {.dx = dx.tensor, .dy = dy.tensor, .y = y.tensor, .scale = scale, .range = c.range};
    }

    bool sees(std::int64_t row, std::int64_t j) const {
        const std::int64_t i = row % c.queries;
        if (c.mask_queries > 0) {
            const std::int64_t batch = row / c.queries / c.heads;
            const std::int64_t mask_row = batch * c.mask_queries + i % c.mask_queries;
            if (hidden[static_cast<std::size_t>(mask_row * c.keys + j)] != 0) return false;
        }
        const std::int64_t distance = i + c.range.offset - j;
        if (!c.range.causal) return true;
        return distance >= 0 && (c.range.window == 0 || distance < c.range.window);
    }

    /// Roundings of a difference of scores, of the exponential, of the sum and of the result.
    void expect_result() const {
        std::vector<double> weights, weight_bounds, gradient, bounds;
        for (std::int64_t row = 0; row < c.batch * c.heads * c.queries; ++row) {
            const auto score = [&](std::int64_t j) { return scale * x.at(row * c.keys + j); };
            double most = -INFINITY, total = 0.0, mean = 0.0, mean_size = 0.0;
            for (std::int64_t j = 0; j < c.keys; ++j) {
                if (sees(row, j)) most = std::max(most, score(j));
            }
            for (std::int64_t j = 0; j < c.keys; ++j) {
                if (sees(row, j)) total += std::exp(score(j) - most);
            }
            const double terms = 16 + std::sqrt(static_cast<double>(c.keys));
            for (std::int64_t j = 0; j < c.keys; ++j) {
                const double weight = sees(row, j) ? std::exp(score(j) - most) / total : 0.0;
                const double reach = sees(row, j) ? std::abs(score(j)) + std::abs(most) : 0.0;
                weights.push_back(weight);
                weight_bounds.push_back(rounding_error<X>(weight) * 1.01 +
                                        (terms + 40 + 3 * reach) * 0x1p-24 * weight + 1e-37);
                // Backward is a function of the rounded weights.
                mean += y.at(row * c.keys + j) * dy.at(row * c.keys + j);
                mean_size += std::abs(y.at(row * c.keys + j) * dy.at(row * c.keys + j));
            }
            for (std::int64_t j = 0; j < c.keys; ++j) {
                const double weight = y.at(row * c.keys + j) * scale;
                const double value = weight * (dy.at(row * c.keys + j) - mean);
                const double size = std::abs(dy.at(row * c.keys + j)) + terms * mean_size;
                gradient.push_back(value);
                bounds.push_back(rounding_error<X>(value) * 1.01 + 4 * 0x1p-24 * weight * size +
                                 1e-37);
            }
        }
        expect_close(y, weights, weight_bounds);
        expect_close(dx, gradient, bounds);
    }
};

}  // namespace megacore::testing
