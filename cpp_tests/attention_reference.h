/// Problems of kernels/attention.h and their results in float64, for the CPU and CUDA kernels.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/attention.h"
#include "kernels/philox.h"
#include "support.h"

namespace megacore::testing {

struct AttentionCase {
    std::int64_t batch = 1;
    std::int64_t queries = 1;
    std::int64_t keys = 1;
    std::int64_t groups = 1;
    std::int64_t ratio = 1;
    std::int64_t head = 32;
    bool causal = true;
    std::int64_t window = 0;
    std::vector<std::int64_t> documents{};
    std::vector<std::int64_t> key_lengths{};
    double drop = 0.0;
};

inline std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
    return out << "[" << c.batch << ", " << c.queries << " of " << c.keys << ", " << c.groups
               << " x " << c.ratio << ", " << c.head << "]" << (c.causal ? " causal" : "")
               << " window " << c.window << " documents " << c.documents.size() << " drop "
               << c.drop;
}

/// Weights and gradients by their definitions; `size` are the same sums of absolute values, which
/// bounds on roundings are made of.
struct AttentionResult {
    std::vector<double> out, log_sum, dq, dk, dv;
    std::vector<double> out_size, dq_size, dk_size, dv_size;
};

template <class T>
struct AttentionProblem {
    AttentionCase c;
    double scale = 0.3;
    std::uint64_t seed = 99;
    Buffer<T> q{"q", {c.batch, c.queries, c.groups, c.ratio, c.head}};
    Buffer<T> k{"k", {c.batch, c.keys, c.groups, c.head}},
        v{"v", {c.batch, c.keys, c.groups, c.head}};
    Buffer<T> out{"out", {c.batch, c.queries, c.groups, c.ratio, c.head}};
    Buffer<T> dout{"dout", {c.batch, c.queries, c.groups, c.ratio, c.head}};
    Buffer<T> dq{"dq", {c.batch, c.queries, c.groups, c.ratio, c.head}};
    Buffer<T> dk{"dk", {c.batch, c.keys, c.groups, c.head}},
        dv{"dv", {c.batch, c.keys, c.groups, c.head}};
    Buffer<float> log_sum{"log_sum", {c.batch, c.queries, c.groups, c.ratio}};
    std::vector<float> workspace;
    AttentionRule rule;

    explicit AttentionProblem(const AttentionCase& c_) : c(c_) {
        q.fill_normal(1);
        k.fill_normal(2);
        v.fill_normal(3);
        dout.fill_normal(4);
        const auto size = [](const auto& list) { return static_cast<std::int64_t>(list.size()); };
        if (!c.documents.empty()) {
            rule.documents = contiguous_view(
                "documents", c.documents.data(), DType::kInt64, {size(c.documents)});
        }
        if (!c.key_lengths.empty()) {
            rule.key_lengths = contiguous_view(
                "key_lengths", c.key_lengths.data(), DType::kInt64, {size(c.key_lengths)});
        }
        rule.causal = c.causal;
        rule.window = c.window;
        rule.scale = scale;
        rule.drop = c.drop;
        rule.seed = seed;
    }

    AttentionForward forward_args() {
        return {.out = out.tensor,
                .log_sum = log_sum.tensor,
                .q = q.tensor,
                .k = k.tensor,
                .v = v.tensor,
                .rule = rule};
    }
    AttentionBackward backward_args() {
        return {.dq = dq.tensor,
                .dk = dk.tensor,
                .dv = dv.tensor,
                .dout = dout.tensor,
                .q = q.tensor,
                .k = k.tensor,
                .v = v.tensor,
                .out = out.tensor,
                .log_sum = log_sum.tensor,
                .rule = rule};
    }

    TensorView working(std::int64_t floats) {
        workspace.assign(static_cast<std::size_t>(floats), std::nanf(""));
        return contiguous_view("workspace", workspace.data(), DType::kFloat32, {floats});
    }

    bool sees(std::int64_t b, std::int64_t i, std::int64_t j) const {
        const std::int64_t length =
            c.key_lengths.empty() ? c.keys : c.key_lengths[static_cast<std::size_t>(b)];
        if (j >= length) return false;
        for (const std::int64_t boundary : c.documents) {
            if ((i < boundary) != (j < boundary)) return false;
        }
        const std::int64_t distance = i + length - c.queries - j;
        return !c.causal || (distance >= 0 && (c.window == 0 || distance < c.window));
    }

    double keep(std::int64_t weight) const {
        if (c.drop == 0.0) return 1.0;
        const Philox philox = Philox::at(seed, static_cast<std::uint64_t>(weight / 4));
        const double threshold = std::floor(c.drop * 0x1p24 + 0.5);
        return (philox.words[weight % 4] >> 8) < threshold ? 0.0
                                                           : 1.0 / (1.0 - threshold * 0x1p-24);
    }

    /// Gradients are functions of the stored outputs, as in the kernels.
    AttentionResult result() const {
        AttentionResult r;
        for (auto* list : {&r.out, &r.out_size, &r.dq, &r.dq_size})
            list->assign(q.elements.size(), 0.0);
        for (auto* list : {&r.dk, &r.dk_size, &r.dv, &r.dv_size})
            list->assign(k.elements.size(), 0.0);
        r.log_sum.assign(log_sum.elements.size(), -INFINITY);
        for (std::int64_t b = 0; b < c.batch; ++b) {
            for (std::int64_t i = 0; i < c.queries; ++i) {
                for (std::int64_t h = 0; h < c.groups * c.ratio; ++h) add_row(r, b, i, h);
            }
        }
        return r;
    }

    /// Bounds: of roundings in T of results and, where the kernel rounds them, of weights; and of
    /// float32 roundings, which grow with the scores' size and the root of the number of terms.
    void expect_result(bool rounds_weights) const {
        const AttentionResult r = result();
        const double terms = 64 + 8 * std::sqrt(static_cast<double>(c.keys * c.queries));
        const double inner = terms * 0x1p-24 + (rounds_weights ? 1.5 * rounding_of<T>() : 0.0);
        const auto bounds = [&](const std::vector<double>& values,
                                const std::vector<double>& sizes) {
            std::vector<double> found;
            for (std::size_t i = 0; i < values.size(); ++i) {
                found.push_back(1.01 * rounding_error<T>(values[i]) + inner * sizes[i] + 1e-30);
            }
            return found;
        };
        expect_close(out, r.out, bounds(r.out, r.out_size));
        std::vector<double> log_bounds;
        for (std::size_t i = 0; i < r.log_sum.size(); ++i) {
            if (std::isinf(r.log_sum[i])) {
                EXPECT_EQ(log_sum.elements[i], -INFINITY) << "log_sum " << i;
            }
            log_bounds.push_back(terms * 0x1p-23);
        }
        std::vector<double> finite = r.log_sum;
        Buffer<float> logs("log_sum", {static_cast<std::int64_t>(finite.size())});
        logs.elements = log_sum.elements;
        for (std::size_t i = 0; i < finite.size(); ++i) {
            if (std::isinf(finite[i])) finite[i] = logs.elements[i] = 0.0f;
        }
        expect_close(logs, finite, log_bounds);
        expect_close(dq, r.dq, bounds(r.dq, r.dq_size));
        expect_close(dk, r.dk, bounds(r.dk, r.dk_size));
        expect_close(dv, r.dv, bounds(r.dv, r.dv_size));
    }

private:
    void add_row(AttentionResult& r, std::int64_t b, std::int64_t i, std::int64_t h) const {
        const std::int64_t heads = c.groups * c.ratio;
        const std::int64_t row = (b * c.queries + i) * heads + h;
        const auto key = [&](std::int64_t j) {
            return ((b * c.keys + j) * c.groups + h / c.ratio) * c.head;
        };
        std::vector<double> scores;
        double most = -INFINITY, total = 0.0, delta = 0.0, delta_size = 0.0;
        for (std::int64_t j = 0; j < c.keys; ++j) {
            double score = 0.0;
            for (std::int64_t d = 0; d < c.head; ++d) {
                score += q.at(row * c.head + d) * k.at(key(j) + d);
            }
            scores.push_back(sees(b, i, j) ? scale * score : -INFINITY);
            most = std::max(most, scores.back());
        }
        if (most == -INFINITY) return;
        for (const double score : scores) total += std::exp(score - most);
        r.log_sum[static_cast<std::size_t>(row)] = most + std::log(total);
        for (std::int64_t d = 0; d < c.head; ++d) {
            delta += dout.at(row * c.head + d) * out.at(row * c.head + d);
            delta_size += std::abs(dout.at(row * c.head + d) * out.at(row * c.head + d));
        }
        for (std::int64_t j = 0; j < c.keys; ++j) {
            if (!sees(b, i, j)) continue;
            const double weight = std::exp(scores[static_cast<std::size_t>(j)] - most) / total;
            const double kept = keep(((b * heads + h) * c.queries + i) * c.keys + j);
            double slope = 0.0, slope_size = 0.0;
            for (std::int64_t d = 0; d < c.head; ++d) {
                const double product = dout.at(row * c.head + d) * v.at(key(j) + d) * kept;
                slope += product;
                slope_size += std::abs(product);
            }
            const double step = scale * weight * (slope - delta);
            const double step_size = scale * weight * (slope_size + delta_size);
            for (std::int64_t d = 0; d < c.head; ++d) {
                const auto add = [](std::vector<double>& sum,
                                    std::vector<double>& size,
                                    std::int64_t at,
                                    double value,
                                    double magnitude) {
                    sum[static_cast<std::size_t>(at)] += value;
                    size[static_cast<std::size_t>(at)] += std::abs(magnitude);
                };
                const double value = weight * kept * v.at(key(j) + d);
                const double back = weight * kept * dout.at(row * c.head + d);
                const double k_value = k.at(key(j) + d), q_value = q.at(row * c.head + d);
                add(r.out, r.out_size, row * c.head + d, value, value);
                add(r.dv, r.dv_size, key(j) + d, back, back);
                add(r.dq, r.dq_size, row * c.head + d, step * k_value, step_size * k_value);
                add(r.dk, r.dk_size, key(j) + d, step * q_value, step_size * q_value);
            }
        }
    }
};

}  // namespace megacore::testing
