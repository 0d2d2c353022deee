// CPU kernel of adamw.h, compiled once per instruction set: one pass, every element independent.
#include "kernels/adamw_cpu.h"

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Pieces start at multiples of this, so that two threads never share a cache line.
constexpr std::int64_t kBlock = 4096;

template <class Copy>
void update(const AdamWStep& args, const AdamWFactors& f, std::int64_t begin, std::int64_t end) {
    float* param = args.param.as<float>() + begin;
    float* exp_avg = args.exp_avg.as<float>() + begin;
    float* exp_avg_sq = args.exp_avg_sq.as<float>() + begin;
    const float* grad = args.grad.as<const float>() + begin;
    Copy* copy = args.model_param.present() ? args.model_param.as<Copy>() + begin : nullptr;

    const Vec grad_scale = Vec::broadcast(f.grad_scale);
    const Vec beta1 = Vec::broadcast(f.beta1);
    const Vec one_minus_beta1 = Vec::broadcast(f.one_minus_beta1);
    const Vec beta2 = Vec::broadcast(f.beta2);
    const Vec one_minus_beta2 = Vec::broadcast(f.one_minus_beta2);
    const Vec keep = Vec::broadcast(f.keep);
    const Vec step_size = Vec::broadcast(f.step_size);
    const Vec inv_sqrt_bias = Vec::broadcast(f.inv_sqrt_bias);
    const Vec eps = Vec::broadcast(f.eps);

    for_each_vec(end - begin, [&](auto load, auto store) {
        const Vec g = load(grad) * grad_scale;
        const Vec m = Vec::fma(beta1, load(exp_avg), one_minus_beta1 * g);
        const Vec v = Vec::fma(beta2, load(exp_avg_sq), one_minus_beta2 * (g * g));
        const Vec denominator = Vec::fma(v.sqrt(), inv_sqrt_bias, eps);
        const Vec p = load(param) * keep - step_size * m / denominator;
        store(exp_avg, m);
        store(exp_avg_sq, v);
        store(param, p);
        if (copy != nullptr) store(copy, p);
    });
}

void step(const AdamWStep& args) {
    const AdamWFactors f = factors(args);
    const std::int64_t size = args.param.sizes[0];
    const DType copy = args.model_param.present() ? args.model_param.dtype : DType::kFloat32;
    visit_float_dtype(copy, [&](auto tag) {
        using Copy = typename decltype(tag)::type;
        parallel_for(0, ceil_div(size, kBlock), 8, [&](std::int64_t begin, std::int64_t end) {
            const std::int64_t last = end * kBlock < size ? end * kBlock : size;
            update<Copy>(args, f, begin * kBlock, last);
        });
    });
}

}  // namespace

extern const AdamWKernels adamw_kernels;
const AdamWKernels adamw_kernels{step};

}  // namespace megacore::cpu::MEGACORE_ISA
