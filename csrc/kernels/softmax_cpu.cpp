// CPU kernels of softmax.h, compiled once per instruction set.
//
// A row goes through a buffer of floats in the first-level cache: its scaled scores, then their
// exponentials. A row longer than the buffer is taken in pieces, whose scores are computed again
// where the exponentials of a whole row would have been kept.
#include "kernels/softmax_cpu.h"

#include <algorithm>
#include <limits>

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/simd_math.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 8192;
constexpr std::int64_t kPiece = 4096;  // columns; a multiple of every vector
constexpr float kLowest = -std::numeric_limits<float>::infinity();

std::int64_t grain_rows(std::int64_t columns) {
    return std::max<std::int64_t>(1, kGrainElements / columns);
}

// One row of scores, and the columns that it sees by its position.
template <class X>
struct Row {
    const X* x;
    const bool* mask;  // or null
    float scale;
    std::int64_t begin;
    std::int64_t end;

    std::int64_t piece_size(std::int64_t first) const { return std::min(kPiece, end - first); }

    // Scaled scores of the columns [first, first + piece_size), minus infinity where hidden, and
    // behind them up to the next whole vector.
    void load(std::int64_t first, float* scores) const {
        const std::int64_t size = piece_size(first);
        const Vec factor = Vec::broadcast(scale);
        const X* const source = x + first;
        for_each_vec(size, [&](auto read, auto store) { store(scores, read(source) * factor); });
        if (mask != nullptr) {
            const bool* const hidden = mask + first;
            for (std::int64_t i = 0; i < size; ++i) scores[i] = hidden[i] ? kLowest : scores[i];
        }
        std::fill(scores + size, scores + round_up(size, Vec::kWidth), kLowest);
    }
};

// Folds the whole vectors of `size` elements into four accumulators, which hide the latency.
template <class Fold>
void fold(float* values, std::int64_t size, Vec (&sums)[4], const Fold& fold_one) {
    const std::int64_t padded = round_up(size, Vec::kWidth);
    std::int64_t i = 0;
    for (; i + 4 * Vec::kWidth <= padded; i += 4 * Vec::kWidth) {
        for (int k = 0; k < 4; ++k) sums[k] = fold_one(sums[k], values + i + k * Vec::kWidth);
    }
    for (; i < padded; i += Vec::kWidth) sums[0] = fold_one(sums[0], values + i);
}

float largest_of(Vec (&sums)[4]) {
    float lanes[Vec::kWidth];
    Vec::max(Vec::max(sums[0], sums[1]), Vec::max(sums[2], sums[3])).store(lanes);
    return *std::max_element(lanes, lanes + Vec::kWidth);
}

float sum_of(const Vec (&sums)[4]) { return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum(); }

template <class X>
void forward_row(const Row<X>& row, X* y, std::int64_t columns) {
    float values[kPiece];
    Vec most[4], sums[4];
    std::fill(most, most + 4, Vec::broadcast(kLowest));
    std::fill(sums, sums + 4, Vec::zero());
    for (std::int64_t first = row.begin; first < row.end; first += kPiece) {
        row.load(first, values);
        fold(values, row.piece_size(first), most, [](Vec largest, float* at) {
            return Vec::max(largest, Vec::load(at));
        });
    }
    const float largest = largest_of(most);
    if (largest == kLowest) {
        std::fill(y, y + columns, X{});
        return;
    }
    const Vec shift = Vec::broadcast(largest);
    const bool whole = row.end - row.begin <= kPiece;
    for (std::int64_t first = row.begin; first < row.end; first += kPiece) {
        if (!whole) row.load(first, values);
        fold(values, row.piece_size(first), sums, [shift](Vec sum, float* at) {
            const Vec value = exp(Vec::load(at) - shift);
            value.store(at);
            return sum + value;
        });
    }
    const Vec factor = Vec::broadcast(1.0f / sum_of(sums));
    std::fill(y, y + row.begin, X{});
    std::fill(y + row.end, y + columns, X{});
    for (std::int64_t first = row.begin; first < row.end; first += kPiece) {
        if (!whole) row.load(first, values);
        for_each_vec(row.piece_size(first), [&](auto read, auto store) {
            const Vec value = whole ? read(values) : exp(read(values) - shift);
            store(y + first, value * factor);
        });
    }
}

template <class X>
void backward_row(const X* y, const X* dy, X* dx, float scale, std::int64_t size) {
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    std::int64_t i = 0;
    for (; i + 4 * Vec::kWidth <= size; i += 4 * Vec::kWidth) {
        for (int k = 0; k < 4; ++k) {
            const std::int64_t at = i + k * Vec::kWidth;
            sums[k] = Vec::fma(Vec::load(y + at), Vec::load(dy + at), sums[k]);
        }
    }
    for_each_vec(size - i,
                 [&](auto read, auto) { sums[0] = Vec::fma(read(y + i), read(dy + i), sums[0]); });
    const Vec mean = Vec::broadcast(sum_of(sums));
    const Vec factor = Vec::broadcast(scale);
    for_each_vec(size,
                 [&](auto read, auto store) { store(dx, read(y) * factor * (read(dy) - mean)); });
}

// Calls body(batch, head, query, first element of the row) for rows begin to end.
template <class Body>
void for_rows(const TensorView& x, std::int64_t begin, std::int64_t end, const Body& body) {
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t head = row / x.sizes[2];
        body(head / x.sizes[1], head % x.sizes[1], row % x.sizes[2], row * x.sizes[3]);
    }
}

template <class X>
void forward_rows(const SoftmaxForward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = args.x.sizes[3];
    const SoftmaxMaskStrides strides = SoftmaxMaskStrides::of(args.mask);
    for_rows(args.x, begin, end, [&](auto batch, auto head, auto query, auto at) {
        Row<X> row{.x = args.x.as<const X>() + at,
                   .mask = args.mask.as<const bool>(),
                   .scale = static_cast<float>(args.scale),
                   .begin = args.range.begin(query, columns),
                   .end = args.range.end(query, columns)};
        row.begin = std::min(row.begin, row.end);
        if (row.mask != nullptr) {
            row.mask += batch * strides.batch + head * strides.head + query * strides.query;
        }
        forward_row(row, args.y.as<X>() + at, columns);
    });
}

template <class X>
void backward_rows(const SoftmaxBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = args.y.sizes[3];
    for_rows(args.y, begin, end, [&](auto, auto, auto query, auto at) {
        const std::int64_t last = args.range.end(query, columns);
        const std::int64_t first = std::min(args.range.begin(query, columns), last);
        X* const dx = args.dx.as<X>() + at;
        backward_row(args.y.as<const X>() + at + first,
                     args.dy.as<const X>() + at + first,
                     dx + first,
                     static_cast<float>(args.scale),
                     last - first);
        std::fill(dx, dx + first, X{});
        std::fill(dx + last, dx + columns, X{});
    });
}

void forward(const SoftmaxForward& args) {
    const std::int64_t rows = args.x.numel() / args.x.sizes[3];
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        parallel_for(
            0, rows, grain_rows(args.x.sizes[3]), [&](std::int64_t begin, std::int64_t end) {
                forward_rows<typename decltype(tag)::type>(args, begin, end);
            });
    });
}

void backward(const SoftmaxBackward& args) {
    const std::int64_t rows = args.y.numel() / args.y.sizes[3];
    visit_float_dtype(args.y.dtype, [&](auto tag) {
        parallel_for(
            0, rows, grain_rows(args.y.sizes[3]), [&](std::int64_t begin, std::int64_t end) {
                backward_rows<typename decltype(tag)::type>(args, begin, end);
            });
    });
}

}  // namespace

extern const SoftmaxKernels softmax_kernels;
const SoftmaxKernels softmax_kernels{forward, backward};

}  // namespace megacore::cpu::MEGACORE_ISA
