/// Problems of kernels/cross_entropy.h and their results in float64, for the CPU and CUDA kernels.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/cross_entropy.h"
#include "support.h"

namespace megacore::testing {

struct CrossEntropyCase {
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t first_column = 0;  // labels lie in front of, in and behind the columns
    bool with_sum = false;          // and a uniform part of the gradient
    std::size_t offset = 0;         // CUDA: elements behind an aligned address
};

// 1, primes, non-multiples of every vector, one warp, several warps, several vectors a thread.
inline constexpr CrossEntropyCase kCrossEntropyCases[] = {{1, 1},
                                                          {3, 7, 2, true},
                                                          {5, 64, 0, true},
                                                          {4, 1021, 500},
                                                          {3, 1024, 0, true, 1},
                                                          {2, 9000, 17, true},
                                                          {70, 24, 5}};

template <class X>
struct CrossEntropyProblem {
    CrossEntropyCase c;
    Buffer<X> logits{"logits", {c.rows, c.columns}}, dlogits{"dlogits", {c.rows, c.columns}};
    Buffer<float> largest{"largest", {c.rows}}, total{"total", {c.rows}};
    Buffer<float> chosen{"chosen", {c.rows}}, sum{"sum", {c.rows}};
    Buffer<float> factor{"factor", {c.rows}}, at_label{"at_label", {c.rows}};
    Buffer<float> uniform{"uniform", {c.rows}};
    std::vector<std::int64_t> label_values;
    TensorView labels;

    explicit CrossEntropyProblem(const CrossEntropyCase& c_) : c(c_) {
        logits.fill_normal(1, 1.0f);
        for (X& x : logits.elements) x = from_float<X>(4.0f * to_float(x));
        factor.fill_normal(2);
        at_label.fill_normal(3);
        uniform.fill_normal(4);
        for (std::int64_t row = 0; row < c.rows; ++row) {
            label_values.push_back(row * 7919 % (c.first_column + c.columns + 3));
        }
        labels = contiguous_view("labels", label_values.data(), DType::kInt64, {c.rows});
    }

    CrossEntropyForward forward_args() {
        CrossEntropyForward args{.largest = largest.tensor,
                                 .total = total.tensor,
                                 .chosen = chosen.tensor,
                                 .logits = logits.tensor,
                                 .labels = labels,
                                 .first_column = c.first_column};
        if (c.with_sum) args.sum = sum.tensor;
        return args;
    }

    CrossEntropyBackward backward_args() {
        CrossEntropyBackward args{.dlogits = dlogits.tensor,
                                  .logits = logits.tensor,
                                  .labels = labels,
                                  .largest = largest.tensor,
                                  .factor = factor.tensor,
                                  .at_label = at_label.tensor,
                                  .first_column = c.first_column};
        if (c.with_sum) args.uniform = uniform.tensor;
        return args;
    }

    /// Forward is exact but for the rounding of sums; a gradient is a difference of three terms.
    void expect_result() const {
        std::vector<double> sums, sum_bounds, totals, total_bounds, gradient, bounds;
        const double terms = 8 + std::sqrt(static_cast<double>(c.columns));
        for (std::int64_t row = 0; row < c.rows; ++row) {
            const auto x = [&](std::int64_t j) { return logits.at(row * c.columns + j); };
            double most = x(0), total_value = 0.0, added = 0.0, size = 0.0;
            for (std::int64_t j = 0; j < c.columns; ++j) most = std::max(most, x(j));
            for (std::int64_t j = 0; j < c.columns; ++j) {
                total_value += std::exp(x(j) - most);
                added += x(j);
                size += std::abs(x(j));
            }
            const std::int64_t label = label_values[row] - c.first_column;
            const bool here = label >= 0 && label < c.columns;
            ASSERT_EQ(largest.at(row), most);
            ASSERT_EQ(chosen.at(row), here ? x(label) : 0.0);
            totals.push_back(total_value);
            // So is each term here; its logit lies up to 40 below the largest.
            total_bounds.push_back((terms + 40) * 0x1p-24 * total_value);
            sums.push_back(added);
            sum_bounds.push_back(terms * 0x1p-24 * size);
            for (std::int64_t j = 0; j < c.columns; ++j) {
                const double spread = factor.at(row) * std::exp(x(j) - most);
                const double even = c.with_sum ? uniform.at(row) : 0.0;
                const double taken = here && j == label ? at_label.at(row) : 0.0;
                const double value = spread - even - taken;
                gradient.push_back(value);
                // The difference to the largest logit is rounded before its exponential is taken.
                const double terms_size =
                    (8 + most - x(j)) * std::abs(spread) + 8 * std::abs(even) + 8 * std::abs(taken);
                bounds.push_back(rounding_error<X>(value) + 0x1p-24 * terms_size + 1e-30);
            }
        }
        expect_close(total, totals, total_bounds);
        if (c.with_sum) expect_close(sum, sums, sum_bounds);
        expect_close(dlogits, gradient, bounds);
    }
};

}  // namespace megacore::testing
