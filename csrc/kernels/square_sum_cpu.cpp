// CPU kernel of square_sum.h, compiled once per instruction set. A block is added up in two
// vectors, which hide the latency of the additions.
#include "kernels/square_sum_cpu.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

constexpr std::int64_t kGrainBlocks = 16;

template <class T>
double block_sum(const T* x, std::int64_t count) {
    const std::int64_t half = count / 2 / Vec::kWidth * Vec::kWidth;
    Vec first = Vec::zero();
    Vec second = Vec::zero();
    for (std::int64_t i = 0; i < half; i += Vec::kWidth) {
        const Vec a = Vec::load(x + i);
        const Vec b = Vec::load(x + half + i);
        first = Vec::fma(a, a, first);
        second = Vec::fma(b, b, second);
    }
    const T* rest = x + 2 * half;
    for_each_vec(count - 2 * half, [&](auto load, auto) {
        const Vec a = load(rest);
        first = Vec::fma(a, a, first);
    });
    return static_cast<double>((first + second).sum());
}

void blocks(const SquareSum& args) {
    const std::int64_t size = args.x.sizes[0];
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        parallel_for(
            0, args.workspace.sizes[0], kGrainBlocks, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t block = begin; block < end; ++block) {
                    const std::int64_t at = block * kSquareSumBlock;
                    args.workspace.as<double>()[block] =
                        block_sum(args.x.as<const T>() + at, std::min(kSquareSumBlock, size - at));
                }
            });
    });
}

}  // namespace

extern const SquareSumKernels square_sum_kernels;
const SquareSumKernels square_sum_kernels{blocks};

}  // namespace megacore::cpu::MEGACORE_ISA
