// CPU kernels of cross_entropy.h, compiled once per instruction set.
//
// A row is read for its maximum, which brings it into the second-level cache, and again for its
// sums. Four independent accumulators hide the latency of an addition.
#include "kernels/cross_entropy_cpu.h"

#include <algorithm>
#include <limits>

#include "core/parallel_for.h"
#include "kernels/simd_math.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 8192;
constexpr int kSums = 4;

std::int64_t grain_rows(std::int64_t columns) {
    return std::max<std::int64_t>(1, kGrainElements / columns);
}

// The first `count` < Vec::kWidth elements, the other lanes minus infinity.
template <class X>
Vec load_tail(const X* source, std::int64_t count) {
    float lanes[Vec::kWidth];
    std::fill(lanes, lanes + Vec::kWidth, -std::numeric_limits<float>::infinity());
    for (std::int64_t i = 0; i < count; ++i) lanes[i] = to_float(source[i]);
    return Vec::load(lanes);
}

// Folds all elements of a row into kSums accumulators, the tail padded with minus infinity.
template <class X, class Fold>
void fold_row(const X* x, std::int64_t columns, Vec (&sums)[kSums], const Fold& fold) {
    constexpr int kStep = kSums * Vec::kWidth;
    std::int64_t i = 0;
    for (; i + kStep <= columns; i += kStep) {
        for (int k = 0; k < kSums; ++k) {
            sums[k] = fold(sums[k], Vec::load(x + i + k * Vec::kWidth));
        }
    }
    for (; i + Vec::kWidth <= columns; i += Vec::kWidth) sums[0] = fold(sums[0], Vec::load(x + i));
    if (i < columns) sums[0] = fold(sums[0], load_tail(x + i, columns - i));
}

template <class X>
float row_max(const X* x, std::int64_t columns) {
    const Vec lowest = Vec::broadcast(-std::numeric_limits<float>::infinity());
    Vec sums[kSums] = {lowest, lowest, lowest, lowest};
    fold_row(x, columns, sums, [](Vec largest, Vec value) { return Vec::max(largest, value); });
    const Vec all = Vec::max(Vec::max(sums[0], sums[1]), Vec::max(sums[2], sums[3]));
    float lanes[Vec::kWidth];
    all.store(lanes);
    return *std::max_element(lanes, lanes + Vec::kWidth);
}

template <class X>
float row_exp_sum(const X* x, float largest, std::int64_t columns) {
    const Vec shift = Vec::broadcast(largest);
    Vec sums[kSums] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    fold_row(x, columns, sums, [=](Vec sum, Vec value) { return sum + exp(value - shift); });
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

template <class X>
float row_sum(const X* x, std::int64_t columns) {
    Vec sum = Vec::zero();
    for_each_vec(columns, [&](auto load, auto) { sum = sum + load(x); });
    return sum.sum();
}

template <class X>
void forward_rows(const CrossEntropyForward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = args.logits.sizes[1];
    for (std::int64_t row = begin; row < end; ++row) {
        const X* x = args.logits.as<const X>() + row * columns;
        const float largest = row_max(x, columns);
        args.largest.as<float>()[row] = largest;
        const bool nothing = largest == -std::numeric_limits<float>::infinity();
        args.total.as<float>()[row] = nothing ? 0.0f : row_exp_sum(x, largest, columns);
        const std::int64_t label = args.labels.as<const std::int64_t>()[row] - args.first_column;
        const bool here = label >= 0 && label < columns;
        args.chosen.as<float>()[row] = here ? to_float(x[label]) : 0.0f;
        if (args.sum.present()) args.sum.as<float>()[row] = row_sum(x, columns);
    }
}

template <class X>
void backward_rows(const CrossEntropyBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = args.logits.sizes[1];
    for (std::int64_t row = begin; row < end; ++row) {
        const X* x = args.logits.as<const X>() + row * columns;
        X* dx = args.dlogits.as<X>() + row * columns;
        const float largest = args.largest.as<const float>()[row];
        const float factor = args.factor.as<const float>()[row];
        const float uniform = args.uniform.present() ? args.uniform.as<const float>()[row] : 0.0f;
        const std::int64_t label = args.labels.as<const std::int64_t>()[row] - args.first_column;
        const bool here = label >= 0 && label < columns;
        const Vec at_row = Vec::broadcast(largest);
        const Vec scale = Vec::broadcast(factor);
        const Vec shift = Vec::broadcast(-uniform);
        // Of the label in float32, before its element is overwritten where dx is x.
        float at_label = 0.0f;
        if (here) {
            const Vec value = exp(Vec::broadcast(to_float(x[label])) - at_row);
            float lanes[Vec::kWidth];
            Vec::fma(value, scale, shift).store(lanes);
            at_label = lanes[0] - args.at_label.as<const float>()[row];
        }
        for_each_vec(columns, [&](auto load, auto store) {
            store(dx, Vec::fma(exp(load(x) - at_row), scale, shift));
        });
        if (here) dx[label] = from_float<X>(at_label);
    }
}

void forward(const CrossEntropyForward& args) {
    const std::int64_t grain = grain_rows(args.logits.sizes[1]);
    visit_float_dtype(args.logits.dtype, [&](auto tag) {
        parallel_for(0, args.logits.sizes[0], grain, [&](std::int64_t begin, std::int64_t end) {
            forward_rows<typename decltype(tag)::type>(args, begin, end);
        });
    });
}

void backward(const CrossEntropyBackward& args) {
    const std::int64_t grain = grain_rows(args.logits.sizes[1]);
    visit_float_dtype(args.logits.dtype, [&](auto tag) {
        parallel_for(0, args.logits.sizes[0], grain, [&](std::int64_t begin, std::int64_t end) {
            backward_rows<typename decltype(tag)::type>(args, begin, end);
        });
    });
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels{forward, backward};

}  // namespace megacore::cpu::MEGACORE_ISA
