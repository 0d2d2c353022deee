// What follows the product of gemm.h on a block: bias, GELU, residual, rounding. Compiled once per
// instruction set.
#include "kernels/gemm_cpu.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/simd_math.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 8192;

// z (1 + tanh(a)) / 2 = z sigmoid(2 a)
inline Vec gelu(Vec z) {
    constexpr float kTwo = 1.5957691216f;  // 2 sqrt(2 / pi)
    const Vec slope = Vec::fma(z * z, Vec::broadcast(kTwo * 0.044715f), Vec::broadcast(kTwo));
    const Vec one = Vec::broadcast(1.0f);
    return z / (one + exp(Vec::zero() - z * slope));
}

template <class Out, class X>
void finish_rows(const Finish& args, std::int64_t begin, std::int64_t end) {
    const X* bias = static_cast<const X*>(args.bias);
    for (std::int64_t row = begin; row < end; ++row) {
        const float* products = args.products + row * args.products_stride;
        Out* out = static_cast<Out*>(args.out) + row * args.out_stride;
        const X* residual = nullptr;
        if (args.residual != nullptr) {
            residual = static_cast<const X*>(args.residual) + row * args.residual_stride;
        }
        for_each_vec(args.columns, [&](auto load, auto store) {
            Vec value = load(products);
            if (bias != nullptr) value = value + load(bias);
            if (args.gelu) value = gelu(value);
            if (residual != nullptr) value = value + load(residual);
            store(out, value);
        });
    }
}

void finish(const Finish& args) {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / args.columns);
    visit_float_dtype(args.dtype, [&](auto tag) {
        using X = typename decltype(tag)::type;
        parallel_for(0, args.rows, grain, [&](std::int64_t begin, std::int64_t end) {
            if (args.out_dtype == DType::kFloat32) {
                finish_rows<float, X>(args, begin, end);
            } else {
                finish_rows<X, X>(args, begin, end);
            }
        });
    });
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels{finish};

}  // namespace megacore::cpu::MEGACORE_ISA
