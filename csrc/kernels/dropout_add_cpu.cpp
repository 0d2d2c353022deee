// CPU kernel of dropout_add.h, compiled once per instruction set.
//
// Random numbers are made for a block of elements at a time, in a loop over counters that the
// compiler turns into vectors, and kept in the first-level cache as floats.
#include "kernels/dropout_add_cpu.h"

#include <algorithm>

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/philox.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;  // elements; a multiple of the numbers of a counter
constexpr std::int64_t kGrainBlocks = 16;

// The upper 24 bits of the numbers of kBlock elements from element `first` on.
void draw(std::uint64_t seed, std::int64_t first, float (&numbers)[kBlock]) {
    const std::uint64_t counter = static_cast<std::uint64_t>(first) / 4;
    for (std::int64_t i = 0; i < kBlock / 4; ++i) {
        const Philox philox = Philox::at(seed, counter + static_cast<std::uint64_t>(i));
        for (int k = 0; k < 4; ++k) {
            numbers[4 * i + k] =
                static_cast<float>(static_cast<std::int32_t>(philox.words[k] >> 8));
        }
    }
}

template <class T>
void drop_blocks(const DropoutAdd& args, std::int64_t begin, std::int64_t end) {
    const DropoutFactors factors = DropoutFactors::of(args);
    const Vec threshold = Vec::broadcast(static_cast<float>(factors.threshold));
    const Vec scale = Vec::broadcast(factors.scale);
    float numbers[kBlock];
    for (std::int64_t block = begin; block < end; ++block) {
        const std::int64_t first = block * kBlock;
        draw(args.seed, first, numbers);
        const T* x = args.x.as<const T>() + first;
        T* out = args.out.as<T>() + first;
        const T* residual = args.residual.present() ? args.residual.as<const T>() + first : nullptr;
        for_each_vec(std::min(kBlock, args.x.sizes[0] - first), [&](auto load, auto store) {
            const Vec kept = Vec::if_less(load(numbers), threshold, Vec::zero(), load(x) * scale);
            store(out, residual == nullptr ? kept : load(residual) + kept);
        });
    }
}

void dropout_add(const DropoutAdd& args) {
    const std::int64_t blocks = ceil_div(args.x.sizes[0], kBlock);
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        parallel_for(0, blocks, kGrainBlocks, [&](std::int64_t begin, std::int64_t end) {
            drop_blocks<typename decltype(tag)::type>(args, begin, end);
        });
    });
}

}  // namespace

extern const DropoutAddKernels dropout_add_kernels;
const DropoutAddKernels dropout_add_kernels{dropout_add};

}  // namespace megacore::cpu::MEGACORE_ISA
