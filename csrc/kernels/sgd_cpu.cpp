// CPU kernel of sgd.h, compiled once per instruction set: one pass, every element independent.
#include "kernels/sgd_cpu.h"

#include <algorithm>

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Pieces start at multiples of this, so that two threads never share a cache line.
constexpr std::int64_t kBlock = 4096;

template <class Copy>
void update(const SgdStep& args, std::int64_t begin, std::int64_t end) {
    float* param = args.param.as<float>() + begin;
    const float* grad = args.grad.as<const float>() + begin;
    float* buffer =
        args.momentum_buffer.present() ? args.momentum_buffer.as<float>() + begin : nullptr;
    Copy* copy = args.model_param.present() ? args.model_param.as<Copy>() + begin : nullptr;
    const Vec grad_scale = Vec::broadcast(static_cast<float>(args.grad_scale));
    const Vec decay = Vec::broadcast(static_cast<float>(args.weight_decay));
    const Vec momentum = Vec::broadcast(static_cast<float>(args.momentum));
    const Vec minus_lr = Vec::broadcast(static_cast<float>(-args.lr));
    for_each_vec(end - begin, [&](auto load, auto store) {
        const Vec old = load(param);
        Vec step = Vec::fma(decay, old, load(grad) * grad_scale);
        if (buffer != nullptr) {
            step = Vec::fma(momentum, load(buffer), step);
            store(buffer, step);
        }
        const Vec p = Vec::fma(minus_lr, step, old);
        store(param, p);
        if (copy != nullptr) store(copy, p);
    });
}

void step(const SgdStep& args) {
    const std::int64_t size = args.param.sizes[0];
    const DType copy = args.model_param.present() ? args.model_param.dtype : DType::kFloat32;
    visit_float_dtype(copy, [&](auto tag) {
        using Copy = typename decltype(tag)::type;
        parallel_for(0, ceil_div(size, kBlock), 8, [&](std::int64_t begin, std::int64_t end) {
            update<Copy>(args, begin * kBlock, std::min(end * kBlock, size));
        });
    });
}

}  // namespace

extern const SgdKernels sgd_kernels;
const SgdKernels sgd_kernels{step};

}  // namespace megacore::cpu::MEGACORE_ISA
