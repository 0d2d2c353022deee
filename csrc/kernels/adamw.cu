// CUDA kernel of adamw.h.
//
// Every thread owns four neighbouring elements (16-byte accesses) or, where a buffer is not aligned
// or at the end, one; the grid strides over the buffers. 28 bytes move per element, 30 with a
// 16-bit copy; bound by memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/math.h"
#include "kernels/adamw.h"
#include "kernels/launch.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kVec = 4;
constexpr std::int64_t kBlocksPerMultiprocessor = 8;

template <class Copy>
struct Params {
    float* param;       // [N]
    float* exp_avg;     // [N]
    float* exp_avg_sq;  // [N]
    Copy* model_param;  // [N] or null
    const float* grad;  // [N]
    std::int64_t size;
    AdamWFactors factors;
};

// --- Device helpers -----------------------------------------------------------------------------

__device__ __forceinline__ void update(
    float& p, float& m, float& v, float grad, const AdamWFactors& f) {
    const float g = grad * f.grad_scale;
    m = fmaf(f.beta1, m, f.one_minus_beta1 * g);
    v = fmaf(f.beta2, v, f.one_minus_beta2 * (g * g));
    const float denominator = fmaf(sqrtf(v), f.inv_sqrt_bias, f.eps);
    p = p * f.keep - f.step_size * m / denominator;
}

// --- Kernels ------------------------------------------------------------------------------------

template <class Copy, int kWidth>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const Params<Copy> a) {
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t whole = a.size / kWidth;
    for (std::int64_t i = first; i < whole; i += stride) {
        const std::int64_t at = i * kWidth;
        auto param = Pack<float, kWidth>::load(a.param + at);
        auto exp_avg = Pack<float, kWidth>::load(a.exp_avg + at);
        auto exp_avg_sq = Pack<float, kWidth>::load(a.exp_avg_sq + at);
        const auto grad = Pack<float, kWidth>::load(a.grad + at);
        Pack<Copy, kWidth> copy;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
            update(param.elements[k],
                   exp_avg.elements[k],
                   exp_avg_sq.elements[k],
                   grad.elements[k],
                   a.factors);
            copy.elements[k] = narrow<Copy>(param.elements[k]);
        }
        param.store(a.param + at);
        exp_avg.store(a.exp_avg + at);
        exp_avg_sq.store(a.exp_avg_sq + at);
        if (a.model_param != nullptr) copy.store(a.model_param + at);
    }
    // The last size % kWidth elements, one a thread.
    const std::int64_t at = whole * kWidth + first;
    if (at < a.size) {
        update(a.param[at], a.exp_avg[at], a.exp_avg_sq[at], a.grad[at], a.factors);
        if (a.model_param != nullptr) a.model_param[at] = narrow<Copy>(a.param[at]);
    }
}

// --- Launcher -----------------------------------------------------------------------------------

template <class Copy>
void launch_step(const AdamWStep& args, void* stream) {
    const Params<Copy> params{
        .param = args.param.as<float>(),
        .exp_avg = args.exp_avg.as<float>(),
        .exp_avg_sq = args.exp_avg_sq.as<float>(),
        .model_param = args.model_param.as<Copy>(),
        .grad = args.grad.as<const float>(),
        .size = args.param.sizes[0],
        .factors = factors(args),
    };
    const bool vectors = aligned16(params.param) && aligned16(params.exp_avg) &&
                         aligned16(params.exp_avg_sq) && aligned16(params.model_param) &&
                         aligned16(params.grad);
    const std::int64_t items = ceil_div(params.size, vectors ? kVec : 1);
    const std::int64_t blocks =
        std::min(ceil_div(items, kThreads), kBlocksPerMultiprocessor * num_multiprocessors());
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .stream = stream};
    launch(vectors ? adamw_kernel<Copy, kVec> : adamw_kernel<Copy, 1>, shape, params);
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void adamw_step(const AdamWStep& args, void* stream) {
    check(args);
    if (args.param.numel() == 0) return;
    const DType copy = args.model_param.present() ? args.model_param.dtype : DType::kFloat32;
    visit_float_dtype(copy, [&](auto tag) {
        launch_step<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
