// CPU kernel of embedding.h, compiled once per instruction set.
//
// A range of rows of the table belongs to one thread, which finds its first token by bisection. The
// sum of a vector of columns stays in a register while the row's tokens are walked through.
#include "kernels/embedding_cpu.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 32768;

template <class T>
void backward_rows(const EmbeddingBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t hidden = args.dtable.sizes[1];
    const std::int64_t* sorted = args.sorted.as<const std::int64_t>();
    const std::int64_t* order = args.order.as<const std::int64_t>();
    const std::int64_t* const last = sorted + args.sorted.sizes[0];
    const T* dout = args.dout.as<const T>();
    const std::int64_t* token = std::lower_bound(sorted, last, begin);
    for (std::int64_t row = begin; row < end; ++row) {
        T* dtable = args.dtable.as<T>() + row * hidden;
        const std::int64_t* const first = token;
        while (token != last && *token == row) ++token;
        if (first == token) {
            std::memset(dtable, 0, static_cast<std::size_t>(hidden) * sizeof(T));
            continue;
        }
        for_each_vec(hidden, [&](auto load, auto store) {
            Vec sum = Vec::zero();
            for (const std::int64_t* at = first; at != token; ++at) {
                sum = sum + load(dout + order[at - sorted] * hidden);
            }
            store(dtable, sum);
        });
    }
}

/// As backward_rows, for sums that are added; it goes from token to token, not from row to row.
template <class T>
void add_rows(const EmbeddingBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t hidden = args.dtable.sizes[1];
    const std::int64_t* sorted = args.sorted.as<const std::int64_t>();
    const std::int64_t* order = args.order.as<const std::int64_t>();
    const std::int64_t* const last = sorted + args.sorted.sizes[0];
    const T* dout = args.dout.as<const T>();
    const std::int64_t* token = std::lower_bound(sorted, last, begin);
    while (token != last && *token < end) {
        const std::int64_t* const first = token;
        while (token != last && *token == *first) ++token;
        float* dtable = args.dtable.as<float>() + *first * hidden;
        for_each_vec(hidden, [&](auto load, auto store) {
            Vec sum = Vec::zero();
            for (const std::int64_t* at = first; at != token; ++at) {
                sum = sum + load(dout + order[at - sorted] * hidden);
            }
            store(dtable, load(dtable) + sum);
        });
    }
}

void backward(const EmbeddingBackward& args) {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / args.dtable.sizes[1]);
    visit_float_dtype(args.dout.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        parallel_for(0, args.dtable.sizes[0], grain, [&](std::int64_t begin, std::int64_t end) {
            args.accumulate ? add_rows<T>(args, begin, end) : backward_rows<T>(args, begin, end);
        });
    });
}

}  // namespace

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels{backward};

}  // namespace megacore::cpu::MEGACORE_ISA
