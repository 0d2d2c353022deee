/// Problems of kernels/embedding.h and their results in float64, for the CPU and the CUDA kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/embedding.h"
#include "support.h"

namespace megacore::testing {

struct EmbeddingCase {
    std::int64_t rows;
    std::int64_t hidden;
    std::int64_t tokens;
    std::size_t offset = 0;  // CUDA: elements behind an aligned address
};

// No tokens, rows that nobody takes, many tokens of a row, with and without vectors.
inline constexpr EmbeddingCase kEmbeddingCases[] = {
    {1, 1, 1}, {4, 3, 0}, {9, 7, 50}, {3, 64, 200}, {40, 1032, 11}, {5, 64, 30, 1}};

/// Out: T, or float for sums that are added to what is there.
template <class T, class Out = T>
struct EmbeddingProblem {
    EmbeddingCase c;
    bool accumulate;
    Buffer<Out> dtable{"dtable", {c.rows, c.hidden}};
    Buffer<T> dout{"dout", {c.tokens, c.hidden}};
    std::vector<std::int64_t> sorted_values, order_values;
    TensorView sorted, order;

    std::vector<double> before;

    explicit EmbeddingProblem(const EmbeddingCase& c_, bool accumulate_ = false)
        : c(c_), accumulate(accumulate_) {
        dout.fill_normal(1);
        dtable.fill_normal(2);
        for (std::int64_t i = 0; i < c.rows * c.hidden; ++i) before.push_back(dtable.at(i));
        // Some numbers that are no row.
        const auto row_of = [&](std::int64_t token) { return token * 7919 % (c.rows + 2) - 1; };
        order_values.resize(static_cast<std::size_t>(c.tokens));
        std::iota(order_values.begin(), order_values.end(), 0);
        std::stable_sort(order_values.begin(), order_values.end(), [&](auto a, auto b) {
            return row_of(a) < row_of(b);
        });
        for (const std::int64_t token : order_values) sorted_values.push_back(row_of(token));
        sorted = contiguous_view("sorted", sorted_values.data(), DType::kInt64, {c.tokens});
        order = contiguous_view("order", order_values.data(), DType::kInt64, {c.tokens});
    }

    EmbeddingBackward args() {
        return {.dtable = dtable.tensor,
                .dout = dout.tensor,
                .sorted = sorted,
                .order = order,
                .accumulate = accumulate};
    }

    void expect_result() const {
        std::vector<double> sums(dtable.elements.size()), sizes(sums.size()), bounds;
        if (accumulate) sums = before;
        for (std::int64_t i = 0; i < c.tokens; ++i) {
            if (sorted_values[i] < 0 || sorted_values[i] >= c.rows) continue;
            for (std::int64_t j = 0; j < c.hidden; ++j) {
                const double value = dout.at(order_values[i] * c.hidden + j);
                sums[sorted_values[i] * c.hidden + j] += value;
                sizes[sorted_values[i] * c.hidden + j] += std::abs(value);
            }
        }
        const double terms = std::sqrt(static_cast<double>(c.tokens));
        for (std::size_t i = 0; i < sums.size(); ++i) {
            bounds.push_back(rounding_error<Out>(sums[i]) + terms * 0x1p-24 * sizes[i] + 1e-30);
        }
        expect_close(dtable, sums, bounds);
    }
};

}  // namespace megacore::testing
